"""From a configuration to a router: nothing is made that is not allowed, and what is named is there or refused."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from cloud_server import CloudServer
from routed import LOCAL, FixedTrust, Heard, asked, local_model

from edgelm.errors import InvalidRequestError, MissingPackageError, RecordError
from edgelm.runtime.chat_model import Asker, ChatRequest
from edgelm.runtime.privacy import Level
from edgelm.runtime.router.amounts import BudgetLimits, Price
from edgelm.runtime.router.config import RouteConfig, read_config
from edgelm.runtime.router.deployment import Deployment, endpoint_of, limits_of, price_of
from edgelm.runtime.router.egress_verify import read as read_log
from edgelm.runtime.router.router import Router
from edgelm.runtime.router.strategy import Trust
from edgelm.runtime.settings import Settings

CLOUD = '[cloud]\nurl = "https://cloud.example/v1"\nmodel = "big"\n'
Read = Callable[[str], RouteConfig]


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    """Where edgelm keeps what a configuration does not say."""
    return Settings(tmp_path / "home")


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_text(text: str) -> RouteConfig:
        file = tmp_path / "router" / "route.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return read_config(file)

    return read_text


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def asks(deployment: Deployment, question: str, trust: Trust | None = None) -> Heard:
    """What a reader of a router's answer has in the end."""

    async def play(router: Router, request: ChatRequest) -> Heard:
        try:
            events = await router.chat(request, Asker(reading="whole"))
            return Heard([event async for event in events])
        finally:
            await deployment.close()

    return asyncio.run(play(deployment.router(local_model(), trust), asked(question)))


@pytest.mark.parametrize("text", ["", CLOUD, f'level = "never"\n{CLOUD}key_env = "NONE"\n[budget]\nrequests_per_day = 5'])
def test_at_level_never_there_is_no_endpoint_no_budget_and_no_log(read: Read, own: Settings, tmp_path: Path, text: str) -> None:
    deployment = Deployment(read(text), own)
    assert deployment.cloud is None
    assert asks(deployment, "What is it?", FixedTrust()).text == LOCAL
    assert files(tmp_path) == ["router/route.toml"]


def test_otherwise_the_budget_is_begun_and_the_log_with_the_first_request(read: Read, own: Settings, tmp_path: Path) -> None:
    with CloudServer() as cloud:
        text = (
            f'level = "allow"\n[cloud]\nurl = "{cloud.url}/"\nmodel = "big"\nprice_input = 0.5\nprice_output = 2\n[thinking]\nmode = "off"'
        )
        deployment = Deployment(read(text), own)
        assert files(tmp_path / "home") == ["state/budget.sqlite"]
        assert asks(deployment, "What is it?", FixedTrust()).text == "from the cloud"
    assert files(tmp_path / "home") == ["state/budget.sqlite", "state/egress.jsonl", "state/egress.jsonl.head"]
    assert cloud.bodies[0]["model"] == "big"
    sent, ended = read_log(own.egress_log)
    assert ended.fields["cost"] == "0.000020"  # 20 tokens read, 5 written
    assert "body" not in sent.fields


def test_files_and_bodies_as_the_configuration_says(read: Read, own: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    with CloudServer() as cloud:
        text = f'level = "redact"\n[cloud]\nurl = "{cloud.url}"\nmodel = "big"\n'
        text += '[budget]\nfile = "spent.sqlite"\n[log]\nfile = "left.jsonl"\nbodies = true\n'
        text += '[redact]\nnames = ["Ada Lovelace"]\nnames_file = "names.txt"\n[thinking]\nmode = "off"'
        (tmp_path / "router").mkdir()
        (tmp_path / "router" / "names.txt").write_text("\n  Zürich Süd  \n\n", encoding="utf-8")
        heard = asks(Deployment(read(text), own), "Did Ada Lovelace see Zürich Süd?", FixedTrust())
    assert heard.told.redacted == {"NAME": 2}
    assert all(name not in cloud.wire.decode() for name in ("Ada", "Lovelace", "Zürich"))
    assert files(tmp_path) == [f"router/{name}" for name in ("left.jsonl", "left.jsonl.head", "names.txt", "route.toml", "spent.sqlite")]
    body = next(read_log(tmp_path / "router" / "left.jsonl")).fields["body"]
    assert body.encode() in cloud.wire


def test_a_names_file_that_cannot_be_read_is_named(read: Read, own: Settings, tmp_path: Path) -> None:
    config = read('[redact]\nnames_file = "names.txt"')
    for content in (None, b"Z\xfcrich"):
        if content is not None:
            (tmp_path / "router" / "names.txt").write_bytes(content)
        with pytest.raises(InvalidRequestError, match=r"the names file .*router/names\.txt cannot be read .*one name a line, in UTF-8"):
            Deployment(config, own)


@pytest.mark.parametrize("wish", ["presidio = true", 'spacy = "en_core_no_such_model"'])
def test_a_missing_presidio_matters_only_if_it_is_asked_for(read: Read, own: Settings, monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    assert Deployment(read('[redact]\nnames = ["Ada"]'), own)
    with pytest.raises(MissingPackageError, match=r"edgelm\[redact\]"):
        Deployment(read(f"[redact]\n{wish}"), own)


KEYS = '[[keys]]\nname = "laptop"\nkey_env = "LAPTOP"\nlevel = "redact"\n[[keys]]\nname = "phone"\nkey_env = "PHONE"\nlevel = "allow"'


def test_keys_of_the_server_have_levels(read: Read, own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment(read(KEYS), own)
    monkeypatch.setenv("LAPTOP", "one")
    with pytest.raises(InvalidRequestError, match="the key 'phone' is to be in PHONE, which is not set"):
        _ = deployment.levels_of_keys
    monkeypatch.setenv("PHONE", "two")
    assert deployment.levels_of_keys == {"one": Level.REDACT, "two": Level.ALLOW}
    monkeypatch.setenv("PHONE", "one")
    assert deployment.levels_of_keys == {"one": Level.REDACT}
    assert Deployment(read(""), own).levels_of_keys == {}


def test_rules_and_what_follows_an_answer_reach_the_router(read: Read, own: Settings) -> None:
    text = '[[rules]]\nanswer = "local"\nname = "long"\nmin_tokens = 1000\n'
    text += '[after]\nunknown = "cloud"\n[thinking]\nmode = "off"\nagreement = 0.8\nsamples = 3\n[stream]\nholds_cloud = false'
    strategy = Deployment(read(text), own).router(local_model(), None).strategy
    assert [(rule.name, rule.answer, rule.min_tokens) for rule in strategy.rules] == [("long", "local", 1000)]
    assert (strategy.unknown, strategy.thinking, strategy.agreement, strategy.budget.samples) == ("cloud", "off", 0.8, 3)
    assert (strategy.holds_cloud, strategy.difficulty, strategy.trust) == (False, None, None)


def test_difficulty_is_read_only_where_it_decides(read: Read, own: Settings) -> None:
    assert Deployment(read("[before]\nask_first_above = 0.4"), own).router(local_model(), None).strategy.difficulty is not None
    Deployment(read('[before]\ndifficulty = "none.json"'), own)
    with pytest.raises(InvalidRequestError, match=r"router/none\.json cannot be read"):
        Deployment(read('[before]\nask_first_above = 0.4\ndifficulty = "none.json"'), own)


@pytest.mark.parametrize(
    ("rule", "message"), [('name = "all"', "'all' has no condition"), ('name = "odd"\nmatches = "("', "'odd' has matches .* no regular")]
)
def test_rules_that_make_no_sense(read: Read, own: Settings, rule: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Deployment(read(f'[[rules]]\nanswer = "local"\n{rule}'), own)


def test_amounts_are_those_of_the_file(read: Read) -> None:
    config = read(f"{CLOUD}price_input = 0.15\nprice_output = 0.6\n[budget]\nrequests_per_day = 7\nmoney_per_month = 2.5")
    assert limits_of(config) == BudgetLimits(requests_per_day=7, money_per_month=Decimal("2.5"))
    assert price_of(config) == Price(Decimal("0.15"), Decimal("0.6"))
    assert price_of(read("")) == Price(0, 0)
    with pytest.raises(InvalidRequestError, match="money_per_day is "):
        limits_of(read("[budget]\nmoney_per_day = 10000000000000"))
    with pytest.raises(InvalidRequestError, match="the price of output is "):
        price_of(read(f"{CLOUD}price_output = 10000000"))


def test_the_endpoint_is_as_the_file_says(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    more = 'key_env = "KEY"\nproxy = "http://u:p@host:1"\nmax_tokens = 9\ntimeout = 1.5\nsilence = 0.5\nleft_out = ["temperature"]'
    cloud = read(f"{CLOUD}{more}").cloud
    assert cloud is not None
    endpoint = endpoint_of(cloud)
    monkeypatch.setenv("KEY", "sk-1")
    address = endpoint.address
    assert (address.url, address.key(), address.proxy) == ("https://cloud.example/v1/chat/completions", "sk-1", "http://u:p@host:1")
    assert (endpoint.model, endpoint.most_tokens, endpoint.timeout_s, endpoint.limits.silence_s) == ("big", 9, 1.5, 0.5)
    assert endpoint.left_out == ("temperature",)
    assert "sk-1" not in repr(endpoint)
    assert "u:p" not in repr(endpoint)


@pytest.mark.parametrize("url", ["https://cloud.example/v1/", "https://cloud.example/v1/chat/completions", "https://cloud.example/v1"])
def test_the_address_may_be_given_up_to_v1_or_whole(read: Read, url: str) -> None:
    cloud = read(f'[cloud]\nurl = "{url}"\nmodel = "big"').cloud
    assert cloud is not None
    assert endpoint_of(cloud).address.url == "https://cloud.example/v1/chat/completions"


@pytest.mark.parametrize("url", ["http://cloud.example/v1", "cloud.example/v1", "ftp://cloud.example", "https:///v1"])
def test_an_address_that_is_not_encrypted_or_none_makes_nothing(read: Read, own: Settings, tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"not encrypted|the endpoint's address is none"):
        Deployment(read(f'level = "allow"\n[cloud]\nurl = "{url}"\nmodel = "big"'), own)
    assert files(tmp_path) == ["router/route.toml"]


def test_a_budget_that_is_damaged_is_not_begun_anew(read: Read, own: Settings, tmp_path: Path) -> None:
    config = read(f'level = "allow"\n{CLOUD}[budget]\nfile = "budget.sqlite"')
    file = tmp_path / "router" / "budget.sqlite"
    file.write_text("nothing of the kind")
    with pytest.raises(RecordError, match="no budget of edgelm"):
        Deployment(config, own)
    assert file.read_text() == "nothing of the kind"
