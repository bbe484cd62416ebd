"""The configuration: what it says is what holds, and what makes no sense is refused by name, without showing it."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgelm.errors import InvalidRequestError
from edgelm.runtime.privacy import Level
from edgelm.runtime.router.config import RouteConfig, read_config

CLOUD = '[cloud]\nurl = "https://cloud.example/v1"\nmodel = "big"\n'
PASSWORD = "hunter2"
Read = Callable[[str], RouteConfig]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "router" / "route.toml"


@pytest.fixture
def read(file: Path) -> Read:
    def read_text(text: str) -> RouteConfig:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return read_config(file)

    return read_text


def fault(read: Read, text: str) -> str:
    """Why a file is refused."""
    with pytest.raises(InvalidRequestError) as caught:
        read(text)
    assert caught.value.__cause__ is None
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


def test_an_empty_file_lets_nothing_leave(read: Read) -> None:
    config = read("")
    assert config == RouteConfig()
    assert (config.level, config.cloud, config.cloud_url) == (Level.NEVER, None, "")
    assert not config.log.bodies
    assert config.after.unknown == "local"


def test_an_endpoint_alone_lets_nothing_leave(read: Read) -> None:
    config = read(CLOUD)
    assert (config.level, config.cloud_url) == (Level.NEVER, "https://cloud.example/v1")


@pytest.mark.parametrize("level", list(Level))
def test_levels_are_called_by_their_names(read: Read, level: Level) -> None:
    for name in (level.name.lower(), level.name):
        assert read(f'level = "{name}"\n{CLOUD}').level is level


@pytest.mark.parametrize("value", ['"all"', '""', "3", "true", '["allow"]', "1.0"])
def test_anything_else_is_no_level(read: Read, file: Path, value: str) -> None:
    told = fault(read, f"level = {value}\n{CLOUD}")
    assert told.startswith(f"{file}: level: the privacy level is ")
    assert told.endswith("it must be never, ask, redact or allow")


@pytest.mark.parametrize("level", ["ask", "redact", "allow"])
def test_a_level_that_lets_out_needs_an_endpoint(read: Read, file: Path, level: str) -> None:
    assert fault(read, f'level = "{level}"') == (
        f"{file}: the level is {level}, but there is no [cloud] to ask; add it, or set level to never"
    )


UNKNOWN = {
    "levle": 'levle = "never"',
    "clouds": '[clouds]\nurl = "x"',
    "cloud.api_key": f'{CLOUD}api_key = "{PASSWORD}"',
    "budget.dollars": "[budget]\ndollars = 5",
    "redact.name": '[redact]\nname = "Ada"',
    "before.threshold": "[before]\nthreshold = 0.5",
    "after.ask_first_above": "[after]\nask_first_above = 0.5",
    "thinking.model": '[thinking]\nmodel = "x"',
    "stream.hold": "[stream]\nhold = true",
    "log.body": "[log]\nbody = true",
    "rules.1.language_": '[[rules]]\nanswer = "local"\nname = "a"\n[[rules]]\nanswer = "local"\nname = "b"\nlanguage_ = "de"',
    "keys.0.key": f'[[keys]]\nname = "a"\nkey_env = "A"\nlevel = "ask"\nkey = "{PASSWORD}"',
}


@pytest.mark.parametrize("place", UNKNOWN)
def test_unknown_keys_are_refused_by_name(read: Read, file: Path, place: str) -> None:
    assert fault(read, UNKNOWN[place]) == f"{file}: {place}: there is no such key"


def test_every_fault_is_named_at_once(read: Read) -> None:
    told = fault(read, 'level = "all"\n[cloud]\nmodel = ""\nmax_tokens = 0\n[budget]\nrequests_per_day = -1')
    for place in ("level: ", "cloud.url: ", "cloud.model: ", "cloud.max_tokens: ", "budget.requests_per_day: "):
        assert place in told


NONSENSE = {
    "cloud.price_input": ["true", "-1", "nan", "inf", "0.0000000000001", '"a lot"'],
    "cloud.max_tokens": ["0", "1.5", "true", '"5"'],
    "cloud.timeout": ["0", "-1", "inf", "nan"],
    "cloud.silence": ["0", '"long"'],
    "cloud.currency": ['"euro"', '"eur"', '""'],
    "cloud.left_out": ['"temperature"', "[1]"],
    "cloud.key_env": ['""', "1"],
    "cloud.keyring": ['""'],
    "budget.requests_per_day": ["-1", "1.0", "true", '"1"'],
    "budget.money_per_month": ["-0.01", "true", "[]"],
    "before.ask_first_above": ["1.5", "nan"],
    "after.threshold": ["-0.1", "1.1", "nan"],
    "after.unknown": ['"both"'],
    "thinking.mode": ['"maybe"', "true"],
    "thinking.samples": ["0", '"8"', "true", "1.0"],
    "thinking.seconds": ["0", "inf"],
    "thinking.agreement": ["2"],
    "stream.holds_cloud": ['"perhaps"', "5"],
    "redact.names": ['"Ada"', "[1]"],
    "redact.spacy": ['""'],
    "log.file": ["1"],
}


@pytest.mark.parametrize(("place", "value"), [(place, value) for place, values in NONSENSE.items() for value in values])
def test_values_that_make_no_sense_are_refused_at_their_place(read: Read, file: Path, place: str, value: str) -> None:
    table, _, key = place.partition(".")
    begin = CLOUD if table == "cloud" else f"[{table}]\n"
    assert f"{file}: {place}" in fault(read, f"{begin}{key} = {value}")


@pytest.mark.parametrize("value", ['answer = "both"\nname = "a"', 'answer = "local"', 'answer = "local"\nname = ""'])
def test_rules_that_make_no_sense(read: Read, value: str) -> None:
    assert "rules.0." in fault(read, f"[[rules]]\n{value}")


@given(
    whole=st.integers(0, 999_999),
    decimals=st.integers(0, 10**12 - 1).map("{:012d}".format),
    form=st.sampled_from(["{}", '"{}"']),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_money_is_exactly_what_is_written(read: Read, whole: int, decimals: str, form: str) -> None:
    written = f"{whole}.{decimals}"
    config = read(f"{CLOUD}price_output = {form.format(written)}\n[budget]\nmoney_per_day = {form.format(written)}")
    assert config.cloud is not None
    assert config.cloud.price_output == config.budget.money_per_day == Decimal(written)
    assert config.cloud.price_input == 0


def test_money_may_be_whole(read: Read) -> None:
    assert read("[budget]\nmoney_per_month = 5").budget.money_per_month == Decimal(5)


def test_limits_are_none_unless_they_are_given(read: Read) -> None:
    budget = read("[budget]\ntokens_per_day = 0").budget
    assert (budget.tokens_per_day, budget.requests_per_day, budget.money_per_month) == (0, None, None)


def test_a_key_comes_from_one_place(read: Read, file: Path) -> None:
    assert fault(read, f'{CLOUD}key_env = "KEY"\nkeyring = "example"') == f"{file}: cloud has both key_env and keyring; keep one of them"
    for one in ("key_env", "keyring"):
        cloud = read(f'{CLOUD}{one} = "KEY"').cloud
        assert getattr(cloud, one) == "KEY"


@pytest.mark.parametrize(
    "url", [f"https://user:{PASSWORD}@cloud.example/v1", f"https://{PASSWORD}@cloud.example", f"https://cloud.example/v1?key={PASSWORD}"]
)
def test_an_address_with_a_secret_is_refused_without_showing_it(read: Read, file: Path, url: str) -> None:
    assert f"{file}: cloud.url: " in fault(read, f'[cloud]\nurl = "{url}"\nmodel = "big"')


@pytest.mark.parametrize(
    "proxy", [f"ftp://user:{PASSWORD}@host:1", f"user:{PASSWORD}@host", f"http://user:{PASSWORD}@host:port", f"http://:{PASSWORD}@", ""]
)
def test_a_proxy_that_is_none_is_refused_without_showing_it(read: Read, file: Path, proxy: str) -> None:
    assert fault(read, f'{CLOUD}proxy = "{proxy}"') == f"{file}: cloud.proxy: a proxy must be http://host:port or https://host:port"


def test_a_proxys_password_is_never_shown(read: Read) -> None:
    proxy = f"http://user:{PASSWORD}@host:3128"
    config = read(f'{CLOUD}proxy = "{proxy}"')
    assert config.cloud is not None
    assert config.cloud.proxy == proxy
    assert PASSWORD not in repr(config)
    fault(read, f'{CLOUD}proxy = ["{proxy}"]')
    fault(read, f'{CLOUD}proxy = "{proxy}"\nkey_env = "A"\nkeyring = "B"')
    fault(read, f'level = "all"\n{CLOUD}proxy = "{proxy}"\nmax_tokens = "{PASSWORD}"\ncurrency = "{PASSWORD}"')


def test_files_are_looked_for_in_the_files_own_folder(read: Read, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = (
        '[budget]\nfile = "budget.sqlite"\n[redact]\nnames_file = "../names.txt"\nspacy = "./names_model"\n'
        '[before]\ndifficulty = "~/difficulty.json"\n[after]\ncalibration = "/srv/calibration.json"\n[log]\nfile = "logs/egress.jsonl"'
    )
    read(text)
    config = read_config(Path("router/route.toml"))
    assert config == read_config(file)
    assert config.budget.file == file.parent / "budget.sqlite"
    assert config.redact.names_file == file.parent / "../names.txt"
    assert config.redact.spacy == str(file.parent / "names_model")
    assert config.before.difficulty == tmp_path / "home" / "difficulty.json"
    assert config.after.calibration == Path("/srv/calibration.json")
    assert config.log.file == file.parent / "logs" / "egress.jsonl"
    assert read('[redact]\nspacy = "en_core_web_sm"').redact.spacy == "en_core_web_sm"


def test_a_home_that_is_not_known(read: Read) -> None:
    assert "budget.file: the home folder is not known" in fault(read, '[budget]\nfile = "~no_such_user_here/budget"')


def test_what_is_no_toml_says_where(read: Read, file: Path) -> None:
    assert fault(read, f'level = "never"\nproxy = {PASSWORD}\n').startswith(f"{file} is no TOML document: ")
    assert "line 2" in fault(read, 'level = "never"\nx = = 3\n')
    file.write_bytes(b'level = "\xff"')
    with pytest.raises(InvalidRequestError, match="is no TOML document"):
        read_config(file)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InvalidRequestError, match=f"{path} cannot be read .*name a TOML file"):
            read_config(path)


@pytest.mark.parametrize("left_out", ["messages", "max_tokens", "temprature", "model=other", "temperature=heat"])
def test_only_what_a_request_can_do_without_is_left_out(read: Read, left_out: str) -> None:
    with pytest.raises(InvalidRequestError, match="can be left out"):
        read(f'{CLOUD}left_out = ["{left_out}"]')


def test_the_bound_of_tokens_may_have_its_newer_name(read: Read) -> None:
    cloud = read(f'{CLOUD}left_out = ["temperature", "max_tokens=max_completion_tokens"]').cloud
    assert cloud is not None
    assert cloud.left_out == ("temperature", "max_tokens=max_completion_tokens")


@pytest.mark.parametrize("line", ["max_tokens = 10000000000", "timeout = 3600"])
def test_bounds_that_bound_nothing_are_refused(read: Read, line: str) -> None:
    with pytest.raises(InvalidRequestError, match=line.split()[0]):
        read(f"{CLOUD}{line}")
