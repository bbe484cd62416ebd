"""Whether a conversation may leave the device. Nobody else decides it: what the door lets out carries this policy's seal.

A level comes from the deployment's configuration, from the key that opened the server, and from the request's own field, and from nowhere
else: no text that a person, a tool or a model wrote is ever looked at for it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from time import monotonic

from edgelm.errors import EgressRefusedError
from edgelm.runtime.privacy import ConsentRequest, Level
from edgelm.runtime.settings import is_offline

_PERMIT_S = 600.0
_MOST_OPEN = 1024  # questions that wait for a person; the oldest is forgotten first


@dataclass(frozen=True)
class Verdict:
    """What the levels come to.

    Attributes:
        level: the strictest.
        redacts: personal data must be replaced, also after a person's consent.
        refusal: why nothing may leave; None where something may.
    """

    level: Level
    redacts: bool
    refusal: str | None = None


@dataclass(frozen=True)
class Permit:
    """One body may go to one address. Made by a Policy, and worth nothing without its seal.

    Attributes:
        url: whole address.
        body_digest: SHA-256 of the bytes that may leave.
        level, redacted: under which it was given.
        expires: by `time.monotonic`.
    """

    url: str
    body_digest: str
    level: Level
    redacted: bool
    expires: float
    seal: bytes = b""

    def signed_text(self) -> bytes:
        """What the seal is over."""
        return "\n".join((self.url, self.body_digest, self.level.name, str(self.redacted), repr(self.expires))).encode()


class Policy:
    """The rules of one deployment.

    Args:
        level: of the deployment; keys and requests can only be stricter.
        offline: whether nothing may leave for now, whatever the levels say.
    """

    def __init__(self, level: Level, offline: Callable[[], bool] = is_offline) -> None:
        self.level = level
        self._offline = offline
        self._key = secrets.token_bytes(32)
        self._questions: dict[str, tuple[str, float]] = {}  # what each is about, and when it ends

    def judge(self, levels: Iterable[Level] = ()) -> Verdict:
        """What may leave, when these have a say beside the deployment."""
        named = (self.level, *levels)
        level, redacts = min(named), Level.REDACT in named
        if level is Level.NEVER:
            return Verdict(level, redacts, "the privacy level is never")
        if self._offline():
            return Verdict(level, redacts, "EDGELM_OFFLINE is set")
        return Verdict(level, redacts)

    def question(self, about: str, endpoint: str, model: str, n_bytes: int, entities: Mapping[str, int]) -> ConsentRequest:
        """Ask for consent.

        Args:
            about: digest of the conversation, for which alone the consent will hold.
        """
        while len(self._questions) >= _MOST_OPEN:
            del self._questions[next(iter(self._questions))]
        question = ConsentRequest(secrets.token_urlsafe(24), endpoint, model, n_bytes, entities)
        self._questions[question.id] = (about, monotonic() + question.expires_s)
        return question

    def consents(self, consent: str, about: str) -> bool:
        """Whether this is the answer to a question about this conversation. It is used up by asking."""
        asked, expires = self._questions.pop(consent, ("", 0.0))
        return asked == about and monotonic() < expires

    def permit(self, levels: Iterable[Level], url: str, body: bytes, redacted: bool, has_consent: bool) -> Permit:
        """Let a body out.

        Raises:
            EgressRefusedError: the levels do not allow it so.
        """
        verdict = self.judge(levels)
        if verdict.refusal is not None:
            raise EgressRefusedError(f"nothing was sent: {verdict.refusal}")
        if verdict.level is Level.ASK and not has_consent:
            raise EgressRefusedError("nothing was sent: the privacy level is ask, and nobody has consented")
        if verdict.redacts and not redacted:
            raise EgressRefusedError("nothing was sent: the privacy level is redact, and the text was not redacted")
        permit = Permit(url, _digest(body), verdict.level, redacted, monotonic() + _PERMIT_S)
        return replace(permit, seal=self._seal(permit))

    def check(self, permit: Permit, url: str, body: bytes) -> None:
        """Whether a body may go to an address now. The door asks before every attempt, and while it reads the answer.

        Raises:
            EgressRefusedError: it may not.
        """
        if not hmac.compare_digest(self._seal(permit), permit.seal):
            raise EgressRefusedError("nothing was sent: the permit was not made by this policy, or was changed")
        if permit.url != url or permit.body_digest != _digest(body):
            raise EgressRefusedError("nothing was sent: the permit is for another body or another address")
        self.still_holds(permit)

    def still_holds(self, permit: Permit) -> None:
        """
        Raises:
            EgressRefusedError: the permit has expired, or nothing may leave any more.
        """
        if monotonic() > permit.expires:
            raise EgressRefusedError("the permit has expired; decide again")
        if (refusal := self.judge((permit.level,)).refusal) is not None:
            raise EgressRefusedError(f"not allowed any more: {refusal}")

    def _seal(self, permit: Permit) -> bytes:
        return hmac.digest(self._key, permit.signed_text(), "sha256")


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
