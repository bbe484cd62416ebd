from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import typer
from bench_records import load_record, run_record
from typer.testing import CliRunner, Result

from edgelm.bench.commands.compare import compare
from edgelm.bench.record import Record
from edgelm.bench.record_file import write_record
from edgelm.errors import InvalidRequestError

app = typer.Typer()
app.command()(compare)


def run(folder: Path, old: Record, new: Record, *options: str) -> Result:
    for name, record in (("a.json", old), ("b.json", new)):
        write_record(folder / name, record)
    arguments = [str(folder / "a.json"), str(folder / "b.json"), *options]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)


def small(seed: int = 0, scale: float = 1.0, repeat: int = 6) -> Record:
    return run_record(("cpu",), (2,), depths=(0,), seed=seed, scale=scale, repeat=repeat)


def test_a_gate_that_is_not_kept_ends_with_3(tmp_path: Path) -> None:
    result = run(tmp_path, small(1), small(2, scale=0.8), "--gate", "5%")
    assert result.exit_code == 3
    for words in ("SLOWER", "GATE NOT KEPT", "slower by more than 5.00%", "CPU package (vendor model)", "more"):
        assert words in result.output


def test_a_gate_that_is_kept_and_no_gate_end_with_0(tmp_path: Path) -> None:
    result = run(tmp_path, small(1), small(2), "--gate", "5%")
    assert result.exit_code == 0
    assert "gate kept: nothing is slower by 5.00% or more" in result.output
    assert "too noisy to rule it out" in run(tmp_path, small(1), small(2, scale=0.96), "--gate", "4%").output
    result = run(tmp_path, small(1), small(2, scale=0.8))
    assert result.exit_code == 0
    assert "slower" in result.output


def test_differences_and_incomplete_records_are_said_first(tmp_path: Path) -> None:
    old = small()
    broken = replace(old.measurements[0], state="interrupted")
    new = replace(old, measurements=(broken, *old.measurements[1:]), state="interrupted", reason="Ctrl-C")
    new = replace(new, machine=replace(new.machine, cpu="another CPU"))
    output = run(tmp_path, old, new).output
    assert output.index("DIFFERENT between A and B") < output.index("Speed")
    assert "processor: AMD EPYC 7B13, then another CPU" in output
    assert "decode 32 at depth 0, cpu, 2 threads (B interrupted)" in output


def test_load_records_show_every_figure(tmp_path: Path) -> None:
    output = run(tmp_path, load_record((4,), 40), load_record((4,), 40, seed=1)).output
    for words in ("4 at once, 128+32 tokens", "TTFT p50 s", "goodput/s"):
        assert words in output


def test_a_gate_must_be_a_share(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="--gate is '5'"):
        run(tmp_path, small(), small(), "--gate", "5")
