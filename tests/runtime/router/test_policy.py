"""Nothing leaves without the policy's permit, and nothing that was written can raise a level."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.errors import EgressRefusedError, InvalidRequestError
from edgelm.runtime.privacy import Level
from edgelm.runtime.router import policy as policy_module
from edgelm.runtime.router.policy import Permit, Policy

URL = "https://cloud.example/v1/chat/completions"
LEVELS = st.sampled_from(list(Level))


def online() -> bool:
    return False


@given(LEVELS, st.lists(LEVELS, max_size=3))
def test_the_strictest_level_holds_and_redaction_is_kept_with_it(own: Level, others: list[Level]) -> None:
    verdict = Policy(own, online).judge(others)
    named = [own, *others]
    assert verdict.level == min(named)
    assert verdict.redacts == (Level.REDACT in named)
    assert (verdict.refusal is None) == (Level.NEVER not in named)


@given(LEVELS, st.lists(LEVELS, max_size=2), st.booleans(), st.booleans())
def test_a_permit_is_given_only_for_what_the_levels_allow(own: Level, others: list[Level], redacted: bool, has_consent: bool) -> None:
    named = {own, *others}
    is_allowed = Level.NEVER not in named and (Level.ASK not in named or has_consent) and (Level.REDACT not in named or redacted)
    policy = Policy(own, online)
    if is_allowed:
        policy.check(policy.permit(others, URL, b"body", redacted, has_consent), URL, b"body")
    else:
        with pytest.raises(EgressRefusedError, match="nothing was sent"):
            policy.permit(others, URL, b"body", redacted, has_consent)


@pytest.mark.parametrize("level", list(Level))
def test_offline_beats_every_level(level: Level) -> None:
    assert Policy(level, lambda: True).judge().refusal is not None
    with pytest.raises(EgressRefusedError):
        Policy(level, lambda: True).permit((), URL, b"", redacted=True, has_consent=True)


def test_the_environment_variable_sets_it_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, is_offline in (("1", True), ("true", True), ("anything", True), ("", False), ("0", False), ("No", False)):
        monkeypatch.setenv("EDGELM_OFFLINE", value)
        assert (Policy(Level.ALLOW).judge().refusal is not None) is is_offline


def test_a_permit_that_another_policy_made_or_nobody_is_worth_nothing() -> None:
    policy = Policy(Level.ALLOW, online)
    good = policy.permit((), URL, b"body", redacted=False, has_consent=False)
    forged = Permit(good.url, good.body_digest, good.level, good.redacted, good.expires)
    other = Policy(Level.ALLOW, online).permit((), URL, b"body", redacted=False, has_consent=False)
    for permit in (forged, other, replace(forged, seal=other.seal), replace(forged, seal=b"")):
        with pytest.raises(EgressRefusedError, match="not made by this policy"):
            policy.check(permit, URL, b"body")


def test_a_permit_that_was_changed_is_worth_nothing() -> None:
    policy = Policy(Level.ALLOW, online)
    good = policy.permit((), URL, b"body", redacted=False, has_consent=False)
    changes = {"url": "https://else.example", "body_digest": "0" * 64, "level": Level.REDACT, "redacted": True, "expires": good.expires + 1}
    for name, value in changes.items():
        with pytest.raises(EgressRefusedError, match="was changed"):
            policy.check(replace(good, **{name: value}), URL, b"body")


def test_a_permit_is_for_one_body_and_one_address() -> None:
    policy = Policy(Level.ALLOW, online)
    good = policy.permit((), URL, b"body", redacted=False, has_consent=False)
    for url, body in ((URL, b"body "), ("https://else.example/v1/chat/completions", b"body")):
        with pytest.raises(EgressRefusedError, match="another body or another address"):
            policy.check(good, url, body)


def test_a_permit_ends_with_its_time_and_when_the_device_goes_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    is_offline = False
    policy = Policy(Level.ALLOW, lambda: is_offline)
    permit = policy.permit((), URL, b"body", redacted=False, has_consent=False)
    policy.still_holds(permit)
    is_offline = True
    with pytest.raises(EgressRefusedError, match="not allowed any more"):
        policy.check(permit, URL, b"body")
    is_offline = False
    monkeypatch.setattr(policy_module, "monotonic", lambda: permit.expires + 1)
    with pytest.raises(EgressRefusedError, match="expired"):
        policy.check(permit, URL, b"body")


def test_consent_is_for_one_conversation_and_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(Level.ASK, online)

    def ask() -> str:
        return policy.question("about", "https://cloud.example", "model", 100, {"EMAIL": 1}).id

    first = ask()
    assert policy.consents(first, "about")
    assert not policy.consents(first, "about")  # used up
    second = ask()
    assert not policy.consents(second, "another")
    assert not policy.consents(second, "about")  # a wrong try uses it up, too
    assert not policy.consents("guessed", "about")
    third = ask()
    late = policy_module.monotonic() + 601
    monkeypatch.setattr(policy_module, "monotonic", lambda: late)
    assert not policy.consents(third, "about")


def test_questions_cannot_be_guessed_and_are_bounded() -> None:
    policy = Policy(Level.ASK, online)
    ids = [policy.question(str(i), "https://cloud.example", "model", 1, {}).id for i in range(1500)]
    assert len(set(ids)) == len(ids)
    assert min(map(len, ids)) >= 32
    assert not policy.consents(ids[0], "0")  # forgotten: there are too many
    assert policy.consents(ids[-1], "1499")


def test_levels_by_name() -> None:
    assert [Level.named(name) for name in ("never", "Ask", "REDACT", "allow")] == list(Level)
    with pytest.raises(InvalidRequestError, match="never, ask, redact or allow"):
        Level.named("sometimes")
    assert list(itertools.pairwise(Level)) == [(Level.NEVER, Level.ASK), (Level.ASK, Level.REDACT), (Level.REDACT, Level.ALLOW)]
