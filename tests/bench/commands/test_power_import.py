from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from bench_records import run_record
from typer.testing import CliRunner

from edgelm.bench.commands.power_import import import_log_command
from edgelm.bench.record import Power, Record
from edgelm.bench.record_file import read_record, write_record
from edgelm.errors import InvalidRequestError, MeterError

STARTED = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Without a meter, as most machines are."""
    made = run_record(engines=("cpu",), threads=(2,))
    nothing = tuple(replace(m, energy=None, energy_reason="no power meter was read") for m in made.measurements)
    made = replace(made, started=STARTED.isoformat(), power=Power(reason="no meter"), measurements=nothing, clock_step_s=0.0)
    write_record(tmp_path / "old.json", made)
    return made


def run(*arguments: str) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    app.command()(import_log_command)
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.output, done.exception


def write_log(path: Path, record: Record, heading: str = "power_w") -> None:
    lines = [f"{STARTED.timestamp() + k / 20:.3f},{12 + k % 7 / 100}" for k in range(-100, round(record.seconds * 20) + 100)]
    path.write_text(f"time,{heading}\n" + "\n".join(lines))


def test_the_new_record_has_the_logs_energies(record: Record, tmp_path: Path) -> None:
    write_log(tmp_path / "plug.csv", record)
    old, log, new = tmp_path / "old.json", tmp_path / "plug.csv", tmp_path / "new.json"
    code, output, _ = run(str(old), str(log), "--out", str(new), "--scope", "wall", "--uncertainty", "1%")
    assert code == 0, output
    imported = read_record(new)
    assert imported.power.headline == "log:plug.csv"
    energies = [m.energy for m in imported.measurements if m.energy is not None]
    assert energies
    assert all(energy.gross_j / energy.seconds == pytest.approx(12.03, rel=0.01) for energy in energies)
    assert read_record(old) == record
    assert "wall" in output


def test_columns_and_units_by_hand(record: Record, tmp_path: Path) -> None:
    write_log(tmp_path / "plug.csv", record, "P")
    arguments = [str(tmp_path / "old.json"), str(tmp_path / "plug.csv"), "--out", str(tmp_path / "new.json"), "--scope", "device"]
    code, _, error = run(*arguments)
    assert code == 1
    assert isinstance(error, MeterError)
    assert not (tmp_path / "new.json").exists()
    code, output, _ = run(*arguments, "--time", "time", "--column", "P", "--unit", "W", "--offset", "0.5")
    assert code == 0, output


def test_what_the_meter_covers_must_be_said(record: Record, tmp_path: Path) -> None:
    write_log(tmp_path / "plug.csv", record)
    assert run(str(tmp_path / "old.json"), str(tmp_path / "plug.csv"), "--out", str(tmp_path / "new.json"))[0] == 2


def test_an_uncertainty_is_a_share(record: Record, tmp_path: Path) -> None:
    write_log(tmp_path / "plug.csv", record)
    arguments = [str(tmp_path / "old.json"), str(tmp_path / "plug.csv"), "--out", str(tmp_path / "new.json"), "--scope", "wall"]
    assert isinstance(run(*arguments, "--uncertainty", "120%")[2], InvalidRequestError)
