from __future__ import annotations

from pathlib import Path

import pytest
from bench_records import load_record, run_record
from typer.testing import CliRunner

from edgelm.bench import history
from edgelm.bench.commands.history import app
from edgelm.bench.record_file import decode_record, read_record

RECORD = run_record(("cpu",), (2,), depths=(0,), repeat=3)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELM_HOME", str(tmp_path))
    return tmp_path


def run(*arguments: str, width: int = 200) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": str(width)}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_an_empty_history_says_so() -> None:
    assert "the history is empty" in run()


def test_records_are_listed_and_found() -> None:
    history.add(RECORD)
    history.add(load_record())
    assert run().index("load") < run().index("smollm2-135m-q4_1.gguf")
    assert "a1b2c3d4e5f6" in run("--engine", "cpu")
    assert "b00000000000" not in run("--engine", "cpu")
    assert "no such record" in run("--model", "gemma")


def test_a_narrow_terminal_cuts_no_id_and_no_time() -> None:
    history.add(RECORD)
    lines = run(width=80).splitlines()
    assert sum(line.startswith("a1b2c3d4e5f6 ") for line in lines) > 1
    assert any("2025-11-22 18:30" in line for line in lines)


def test_a_record_is_shown_exported_and_removed(home: Path) -> None:
    history.add(RECORD)
    assert "decode 32" in run("show", "a1b2")
    assert decode_record(run("export", "a1b2"), "it") == RECORD
    run("export", "a1b2", str(home / "out.json"))
    assert read_record(home / "out.json") == RECORD
    assert "removed a1b2c3d4e5f6" in run("remove", "a1b2")
    assert history.entries() == ()
