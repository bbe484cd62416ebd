from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from bench_records import run_record
from typer.testing import CliRunner

from edgelm.bench import history
from edgelm.bench.commands.report import report
from edgelm.bench.record_file import write_record
from edgelm.errors import RecordError

RECORD = run_record(("cpu",), (2,), depths=(0,), repeat=3)
app = typer.Typer()
app.command()(report)


@pytest.fixture
def record_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_record(tmp_path / "record.json", RECORD)
    return tmp_path / "record.json"


def run(*arguments: object) -> str:
    """What the command prints."""
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_every_form_is_written(record_file: Path) -> None:
    folder = record_file.parent
    options = [("--html", "page.html"), ("--csv", "rows.csv"), ("--markdown", "text.md"), ("--jsonl", "lines.jsonl")]
    shown = run(record_file, *(part for option, name in options for part in (option, folder / name)))
    assert shown.count("wrote ") == 4
    assert (folder / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert (folder / "rows.csv").read_text().count("\n") == 4
    assert (folder / "text.md").read_text().startswith("## smollm2")
    assert len([json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]) == 3


def test_without_a_form_the_tables_are_printed_and_ids_of_the_history_work(record_file: Path) -> None:
    history.add(RECORD)
    assert run("a1b2") == run(record_file)
    assert "decode 32" in run("a1b2")


def test_several_records_share_one_heading_of_csv(record_file: Path) -> None:
    run(record_file, record_file, "--csv", "both.csv")
    lines = Path("both.csv").read_text().splitlines()
    assert len(lines) == 7
    assert sum(line.startswith("record,") for line in lines) == 1


@pytest.mark.parametrize(("text", "message"), [("no-such-file.json", "cannot be read"), ("abcdef", "no record 'abcdef'")])
def test_a_record_that_is_not_there(record_file: Path, text: str, message: str) -> None:
    assert record_file.exists()
    with pytest.raises(RecordError, match=message):
        run(text)
