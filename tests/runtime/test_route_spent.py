"""`edgelm route spent`."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgelm.errors import InvalidRequestError, RecordError
from edgelm.runtime.cli import app
from edgelm.runtime.router.amounts import BudgetLimits, Price
from edgelm.runtime.router.budget import Budget
from edgelm.runtime.settings import read_settings

CONFIG = """
level = "allow"
[cloud]
url = "https://cloud.example/v1"
model = "big"
currency = "EUR"
[budget]
requests_per_day = 3
tokens_per_day = 10000
money_per_month = 0.5
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "route.toml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def spend() -> Callable[[Path], None]:
    """One request that has ended, and one whose end is not known, of today."""

    def make(path: Path) -> None:
        budget = Budget(path, BudgetLimits(), Price(Decimal("0.15"), Decimal("0.6")))
        budget.settle(budget.reserve(2000, 1000), 1500, 400)
        budget.reserve(1000, 1000)

    return make


def spent(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["route", "spent", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_rows_say_what_is_spent_reserved_and_left(config: Path, spend: Callable[[Path], None]) -> None:
    before = datetime.now(UTC)
    spend(read_settings().budget)
    header, *rows = map(cells, spent(config).splitlines())
    assert header == ["PERIOD", "OF", "SPENT", "RESERVED", "REMAINING", "LIMIT", "ENDS (UTC)"]
    assert [row[:-1] for row in rows] == [
        ["day", "requests", "1", "1", "1", "3"],
        ["day", "tokens", "1,900", "2,000", "6,100", "10,000"],
        ["day", "EUR", "0.000465", "0.000750", "no bound", "no bound"],
        ["month", "requests", "1", "1", "no bound", "no bound"],
        ["month", "tokens", "1,900", "2,000", "no bound", "no bound"],
        ["month", "EUR", "0.000465", "0.000750", "0.498785", "0.5"],
    ]
    tomorrow = {f"{time + timedelta(days=1):%Y-%m-%d} 00:00" for time in (before, datetime.now(UTC))}
    assert {row[-1] for row in rows[:3]} <= tomorrow
    assert all(row[-1].endswith("-01 00:00") for row in rows[3:])


def test_json_has_the_same_with_money_exactly(config: Path, spend: Callable[[Path], None]) -> None:
    spend(read_settings().budget)
    told = json.loads(spent(config, "--json"))
    assert (told["file"], told["currency"]) == (str(read_settings().budget), "EUR")
    assert told["day"]["requests"] == {"spent": 1, "reserved": 1, "remaining": 1, "limit": 3}
    assert told["day"]["money"] == {"spent": "0.000465", "reserved": "0.000750", "remaining": None, "limit": None}
    assert told["month"]["money"]["remaining"] == "0.498785"
    assert datetime.fromisoformat(told["month"]["ends"]) > datetime.now(UTC)


def test_before_anything_was_spent_all_is_left_and_no_file_made(config: Path, home: Path) -> None:
    told = json.loads(spent(config, "--json"))
    assert told["day"]["requests"] == {"spent": 0, "reserved": 0, "remaining": 3, "limit": 3}
    assert "no bound" in spent(config)
    assert not home.exists()


def test_the_budget_is_where_the_configuration_says(config: Path, spend: Callable[[Path], None], tmp_path: Path) -> None:
    config.write_text('[budget]\nfile = "own.sqlite"')
    spend(tmp_path / "own.sqlite")
    lines = spent(config).splitlines()
    assert cells(lines[1])[:3] == ["day", "requests", "1"]
    assert cells(lines[3])[:3] == ["day", "money", "0.000465"]  # without an endpoint there is no currency


def test_a_budget_that_was_deleted_or_is_damaged_is_no_empty_one(config: Path, spend: Callable[[Path], None]) -> None:
    path = read_settings().budget
    spend(path)
    path.write_bytes(path.read_bytes()[:4096] + b"\xa5" * 8192)
    with pytest.raises(RecordError, match="damaged"):
        spent(config)
    path.unlink()
    path.with_name(f"{path.name}-journal").touch()
    with pytest.raises(RecordError, match="was deleted"):
        spent(config)


def test_a_configuration_that_makes_no_sense(config: Path) -> None:
    config.write_text("[budget]\nrequests = 3")
    with pytest.raises(InvalidRequestError, match=r"budget\.requests: there is no such key"):
        spent(config)
