"""`edgelm route check`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgelm.errors import EdgeLMError, InvalidRequestError, MissingPackageError, ModelFileError, RecordError
from edgelm.runtime.cli import app
from edgelm.runtime.commands.routing import configuration
from edgelm.runtime.settings import read_settings

CLOUD = '[cloud]\nurl = "https://cloud.example/v1"\nmodel = "big"\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EDGELM_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "route.toml"


def facts(file: Path, text: str) -> dict[str, str]:
    """What is said of a configuration, by names."""
    file.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(app, ["route", "check", str(file)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = (line.partition("  ") for line in result.stdout.splitlines())
    return {name: said.strip() for name, _, said in lines}


def test_an_empty_configuration(file: Path, home: Path) -> None:
    told = facts(file, "")
    assert told["level"] == "never: nothing leaves this device"
    assert told["endpoint"] == "none"
    assert told["before an answer"] == "this device begins"
    assert "key" not in told
    assert not home.exists()


def test_a_whole_configuration(file: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_KEY", "sk-0123456789")
    monkeypatch.setenv("LAPTOP", "lk-0123456789")
    text = f"""
level = "redact"
{CLOUD}
key_env = "CLOUD_KEY"
proxy = "http://user:hunter2@proxy.example:3128"
price_input = 0.15
price_output = 1
currency = "EUR"
[budget]
requests_per_day = 1000
tokens_per_day = 50000
money_per_month = 5
file = "spent.sqlite"
[redact]
names = ["Ada Lovelace"]
[before]
ask_first_above = 0.4
[after]
threshold = 0.7
unknown = "cloud"
[thinking]
mode = "off"
[log]
bodies = true
[[rules]]
answer = "local"
name = "pay"
matches = "salary"
has_code = false
[[rules]]
answer = "cloud"
name = "long"
min_tokens = 1000
[[keys]]
name = "laptop"
key_env = "LAPTOP"
level = "allow"
"""
    told = facts(file, text)
    assert told == {
        "level": "redact: personal data that is recognized is replaced before anything leaves",
        "endpoint": "https://cloud.example/v1/chat/completions, through a proxy",
        "model": "big, for answers of up to 1,024 tokens within 60 s",
        "key": "is there, in the environment variable CLOUD_KEY",
        "price": "0.15 EUR for a million tokens read, 1 written",
        "budget of a day": "at most 1,000 requests, 50,000 tokens",
        "budget of a month": "at most 5 EUR",
        "spending kept in": str(file.parent / "spent.sqlite"),
        "log of what leaves": f"{read_settings().egress_log}, with the texts",
        "redaction": "edgelm's own patterns; the names given",
        "before an answer": "the cloud is asked first from an expected gain of 0.4 on, by what comes with edgelm",
        "after an answer": "trusted from a confidence of 0.7, by the calibration that is kept for the model; otherwise not thought over; "
        "where the confidence is not known, the cloud answers",
        "rule pay": "answered here if 'salary' is found and no code is shown",
        "rule long": "asked of the cloud if it has 1000 tokens or more",
        "server key laptop": "level redact; LAPTOP is set",
    }
    assert not any(secret in str(told) for secret in ("0123456789", "hunter2", "Lovelace"))
    assert not home.exists()
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_keys_that_are_missing_are_said(file: Path) -> None:
    text = f'level = "ask"\n{CLOUD}key_env = "NO_KEY_HERE"\n[[keys]]\nname = "laptop"\nkey_env = "NOR_HERE"\nlevel = "never"'
    told = facts(file, text)
    assert told["key"].startswith("MISSING, so that this device answers everything: the environment variable NO_KEY_HERE")
    assert told["server key laptop"] == "level never; NOR_HERE is NOT SET, so that no server starts"
    assert facts(file, CLOUD)["key"] == "none is sent"


def test_what_bounds_nothing_is_said(file: Path) -> None:
    told = facts(file, f'level = "allow"\n{CLOUD}[budget]\nmoney_per_day = 1')
    assert told["budget of a day"] == "at most 1 USD (BOUNDS NOTHING: both prices are 0)"
    assert told["budget of a month"] == "no bound"


def test_nothing_leaves_is_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts(file, CLOUD)["endpoint"].endswith(", which is never asked at this level")
    monkeypatch.setenv("EDGELM_OFFLINE", "1")
    assert facts(file, f'level = "allow"\n{CLOUD}')["offline"] == "EDGELM_OFFLINE is set, and nothing leaves as long as it is"


NONSENSE: dict[str, tuple[str, type[EdgeLMError], str]] = {
    "no endpoint": ('level = "allow"', InvalidRequestError, r"no \[cloud\] to ask"),
    "an open address": ('[cloud]\nurl = "http://cloud.example/v1"\nmodel = "big"', InvalidRequestError, "not encrypted"),
    "a limit": ("[budget]\nmoney_per_day = 10000000000000", InvalidRequestError, "money_per_day is "),
    "a price": (f"{CLOUD}price_input = 10000000", InvalidRequestError, "the price of input is "),
    "a rule": ('[[rules]]\nanswer = "cloud"\nname = "all"', InvalidRequestError, "has no condition"),
    "a names file": ('[redact]\nnames_file = "none.txt"', InvalidRequestError, r"none\.txt cannot be read"),
    "a difficulty": ('[before]\nask_first_above = 0\ndifficulty = "none.json"', InvalidRequestError, r"none\.json cannot be read"),
    "a calibration": ('[after]\ncalibration = "none.json"', ModelFileError, r"none\.json cannot be used as a calibration"),
    "a budget": (f'level = "allow"\n{CLOUD}[budget]\nfile = "route.toml"', RecordError, "no budget of edgelm"),
    "presidio": ("[redact]\npresidio = true", MissingPackageError, r"edgelm\[redact\]"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_what_makes_no_sense_is_an_error(what: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    text, kind, message = NONSENSE[what]
    with pytest.raises(kind, match=message):
        facts(file, text)
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    assert file.read_text(encoding="utf-8") == text


def test_the_command_says_it_in_one_line_and_exits_with_1(file: Path) -> None:
    file.write_text('level = "all"')
    command = [sys.executable, "-c", "from edgelm.runtime.cli import main; main()", "route", "check", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"edgelm: {file}: level: the privacy level is 'all'; it must be never, ask, redact or allow\n"


def test_without_pydantic_it_is_said_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(MissingPackageError, match=r"edgelm\[route\]"):
        configuration(file)
