"""`edgelm route log` and `edgelm route verify`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from edgelm.errors import InvalidRequestError, RecordError
from edgelm.runtime.cli import app
from edgelm.runtime.router.egress_log import EgressLog
from edgelm.runtime.router.egress_record import Ended, Refused, Sent
from edgelm.runtime.settings import read_settings

SENT = Sent(
    *("r1", "https://cloud.example", "big", "public", "too hard"), 1, b"x" * 12345, {"EMAIL": 2, "PERSON": 1}, 4000, Decimal("0.0125")
)
ENDED = Ended("r1", 1, "answered", 200, 1900, Decimal("0.0031"), 1234, "0" * 64, 3)


@dataclass(frozen=True)
class Odd:
    """An entry whose fields are none of the expected ones."""

    kind: ClassVar[str] = "odd"

    def to_json(self, keeps_bodies: bool) -> dict[str, Any]:  # noqa: ARG002
        return {"endpoint": "\x1b[31m[red]", "replaced": 5, "reason": ["list"]}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The router's own log."""
    monkeypatch.setenv("EDGELM_HOME", str(tmp_path))
    return read_settings().egress_log


@pytest.fixture
def log(path: Path) -> EgressLog:
    return EgressLog(path, clock=lambda: datetime(2025, 3, 1, 12, 30, 5, tzinfo=UTC))


def route(*arguments: str | Path, error: type[Exception] | None = None) -> str:
    """What the command prints; or the message of the error that ends it, which the command prints and exits 1 for."""
    result = CliRunner().invoke(app, ["route", *map(str, arguments)])
    if error is None:
        assert result.exit_code == 0, result.output
        return result.output
    assert isinstance(result.exception, error), result.output
    return str(result.exception)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_a_row_says_what_was_sent_why_and_how_it_ended(log: EgressLog) -> None:
    log.append(SENT)
    log.append(replace(SENT, request="r2", endpoint="https://other.example"))
    log.append(ENDED)
    log.append(Refused("r3", None, "private", "names a person"))
    header, first, second, third = route("log").splitlines()
    assert cells(header) == ["TIME (UTC)", "ENDPOINT", "LEVEL", "WHY", "BYTES", "ENTITIES", "TOKENS", "COST", "OUTCOME"]
    start, entities = ["2025-03-01 12:30:05"], "2 EMAIL, 1 PERSON"
    assert cells(first) == [*start, "https://cloud.example", "public", "too hard", "12,345", entities, "1,900", "0.0031", "answered (200)"]
    other = ["https://other.example", "public", "too hard", "12,345", entities, "≤ 4,000", "≤ 0.0125", "no end known"]
    assert cells(second) == [*start, *other]
    assert cells(third) == [*start, "private", "names a person", "refused, nothing sent"]


def test_an_end_without_figures_leaves_the_worst_case(log: EgressLog) -> None:
    log.append(SENT)
    log.append(Ended("r1", 1, "timeout", None, None, None, 60_000, "0" * 64, 0))
    assert cells(route("log").splitlines()[1])[-3:] == ["≤ 4,000", "≤ 0.0125", "timeout"]


def test_only_the_newest_are_listed(log: EgressLog) -> None:
    for n in range(25):
        log.append(replace(SENT, request=f"r{n}", reason=f"reason{n}"))
    log.append(replace(ENDED, request="r0"))
    log.append(replace(ENDED, request="r24"))
    lines = route("log", "--last", "2").splitlines()
    assert ["reason23" in lines[1], "reason24" in lines[2], len(lines)] == [True, True, 3]
    assert "answered" in lines[2]
    assert len(route("log").splitlines()) == 21


def test_json_is_the_logs_own_lines(log: EgressLog, path: Path) -> None:
    log.append(SENT)
    log.append(ENDED)
    assert route("log", "--json") == path.read_text()
    assert json.loads(route("log", "--json", "--last", "1"))["kind"] == "ended"


def test_odd_fields_do_no_harm(log: EgressLog) -> None:
    log.append(Odd())
    row = route("log").splitlines()[1]
    assert "�[31m[red]" in row
    assert row.rstrip().endswith("odd")


def test_before_anything_was_sent(path: Path, log: EgressLog) -> None:
    assert f"no {path}" in " ".join(route("log").split())
    assert "cannot be used" in route("log", "--path", path, error=RecordError)
    assert "cannot be used" in route("verify", error=RecordError)
    log.append(SENT)
    path.unlink()
    assert "cannot be used" in route("log", error=RecordError)


def test_verify_prints_a_head_that_is_good_later(log: EgressLog, path: Path) -> None:
    log.append(SENT)
    out = route("verify")
    assert f"{path}: 1 records, all whole" in out
    head = out.splitlines()[1].removeprefix("head ")
    log.append(ENDED)
    assert "2 records" in route("verify", "--head", head, "--path", path)
    other = f"1:{'0' * 64}"
    assert "is broken at line 1 (replaced)" in route("verify", "--head", other, error=RecordError)
    assert "NUMBER:SHA256" in route("verify", "--head", "nonsense", error=InvalidRequestError)


def test_verify_says_where_it_is_broken_and_exits_with_1(log: EgressLog, path: Path) -> None:
    for entry in (SENT, ENDED, SENT):
        log.append(entry)
    path.write_bytes(path.read_bytes().replace(b'"tokens":1900', b'"tokens":1'))
    command = [sys.executable, "-c", "from edgelm.runtime.cli import main; main()", "route", "verify"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"edgelm: {path} is broken at line 2 (changed): its hash does not fit")
    assert "1 records are whole" in done.stderr
    assert done.stderr.count("\n") == 1
