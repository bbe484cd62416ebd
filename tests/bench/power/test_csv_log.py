from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edgelm.bench.power.csv_columns import Choice
from edgelm.bench.power.csv_log import import_log
from edgelm.bench.record import (
    Load,
    LoadLevel,
    Machine,
    Measurement,
    MeterInfo,
    MeterTrace,
    Power,
    Record,
    Sustain,
    Trial,
    Window,
)
from edgelm.errors import EdgeLMError, MeterError, RecordError

STARTED = datetime(2026, 5, 1, 12, 0, 0, 250_000, tzinfo=UTC)
TRIALS = (Trial(20.0, (25.0, 30.0)), Trial(40.0, (50.0,)))
MEASUREMENT = Measurement("cpu", 2, "decode", 0, 2, 0, TRIALS, energy_reason="no power meter was read")
RECORD = Record(
    kind="run",
    id="0123456789ab",
    started=STARTED.isoformat(timespec="milliseconds"),
    machine=Machine("a processor", 2, "Linux", "3.11", {}),
    settings={"repeat": "2"},
    seconds=100.0,
    measurements=(MEASUREMENT,),
    power=Power(reason="no meter"),
    load=Load("http://127.0.0.1", "m", 8, 8, None, None, (LoadLevel(1, None, Window(60.0, 70.0), ()),)),
    sustain=(Sustain("cpu", 2, Window(75.0, 90.0), (), (), None, None, None, None),),
)


def watts(time_s: float) -> float:
    """8 W at rest, 14 W in the trials and rising to 20 W; all energies follow from it."""
    if 20 <= time_s < 30 or 40 <= time_s < 50:
        return 14.0 + 0.6 * ((time_s % 20) if time_s < 30 else (time_s - 40))
    return 8.0 + 0.001 * math.sin(7 * time_s)  # a real meter is never still


def wall_clock_log(
    folder: Path,
    start_s: float = -10,
    end_s: float = 110,
    step_s: float = 0.2,
    curve: Callable[[float], float] = watts,
    late_s: float = 0.0,
) -> Path:
    n = round((end_s - start_s) / step_s)
    times = [start_s + step_s * k for k in range(n + 1)]
    lines = [f"{(STARTED + timedelta(seconds=t + late_s)).isoformat()},{curve(t):.6f}" for t in times]
    log = folder / "meter.csv"
    log.write_text("timestamp,power_w\n" + "\n".join(lines) + "\n")
    return log


def error_of(log: Path, record: Record = RECORD) -> EdgeLMError:
    with pytest.raises(EdgeLMError) as caught:
        import_log(record, log, "wall")
    return caught.value


def test_the_energy_of_a_known_curve_is_recovered(tmp_path: Path) -> None:
    record = import_log(RECORD, wall_clock_log(tmp_path), "wall", uncertainty=0.01)
    energy = record.measurements[0].energy
    assert energy is not None
    assert energy.gross_j == pytest.approx(2 * (14 + 20) / 2 * 10, rel=0.01)
    assert (energy.meter, energy.kind, energy.seconds, energy.net_j) == ("log:meter.csv", "measured", 20.0, None)
    assert energy.uncertainty is not None
    assert energy.uncertainty >= 0.01
    assert record.power.headline == "log:meter.csv"
    assert record.power.reason == ""
    info = record.power.traces[0].meter
    assert (info.scope, info.quantity, info.period_s) == ("wall", "power", pytest.approx(0.2))
    assert record.settings == {"repeat": "2", "imported-log": "meter.csv"}
    assert replace(RECORD, settings=record.settings, power=record.power) == replace(
        record, measurements=RECORD.measurements, load=RECORD.load, sustain=RECORD.sustain
    )


def test_levels_and_long_runs_get_theirs_too(tmp_path: Path) -> None:
    def curve(time_s: float) -> float:
        return 8.0 + (time_s % 1.0) * 0.001 + (3.0 if 60 <= time_s < 70 else 5.0 if 75 <= time_s < 90 else 0.0)

    record = import_log(RECORD, wall_clock_log(tmp_path, curve=curve), "wall")
    assert record.load is not None
    level, sustain = record.load.levels[0], record.sustain[0]
    assert level.energy is not None
    assert sustain.energy is not None
    assert level.energy.gross_j == pytest.approx(110, rel=0.01)
    assert sustain.energy.gross_j == pytest.approx(195, rel=0.01)


def test_idle_that_was_remembered_makes_net_energy(tmp_path: Path) -> None:
    before = replace(RECORD, power=Power(reason="rapl failed", idle=(Window(0.0, 15.0), Window(92.0, 99.0))))

    energy = import_log(before, wall_clock_log(tmp_path), "wall").measurements[0].energy
    assert energy is not None
    assert energy.net_j == pytest.approx(energy.gross_j - 8 * 20, rel=0.001)


def test_a_counter_in_watt_hours(tmp_path: Path) -> None:
    lines = [f"{STARTED.timestamp() + t / 10:.2f},{3.0 + 10.0 * t / 10 / 3600:.9f}" for t in range(-50, 1051)]
    log = tmp_path / "counter.csv"
    log.write_text("epoch,energy_wh\n" + "\n".join(lines))
    record = import_log(RECORD, log, "device")
    energy = record.measurements[0].energy
    assert energy is not None
    assert energy.gross_j == pytest.approx(200, rel=0.01)
    assert record.power.traces[0].values[0] == 0.0


def test_times_from_the_logs_own_start_need_an_offset(tmp_path: Path) -> None:
    log = tmp_path / "meter.csv"
    log.write_text("Time (s),Power (W)\n" + "\n".join(f"{t / 5},{watts(t / 5 - 10):.4f}" for t in range(600)))
    assert "--offset" in str(error_of(log))
    energy = import_log(RECORD, log, "wall", offset_s=-10.0).measurements[0].energy
    assert energy is not None
    assert energy.gross_j == pytest.approx(340, rel=0.01)


def test_an_offset_corrects_a_clock_that_is_late(tmp_path: Path) -> None:
    late = wall_clock_log(tmp_path, late_s=-7.0)
    wrong, right = (import_log(RECORD, late, "wall", offset_s=offset).measurements[0].energy for offset in (None, 7.0))
    assert right is not None
    assert wrong is not None
    assert right.gross_j == pytest.approx(340, rel=0.01)
    assert wrong.gross_j < 0.85 * right.gross_j


def test_a_narrower_log_leaves_the_headline(tmp_path: Path) -> None:
    plug = MeterInfo("shelly://plug", "wall socket", "wall", "measured", "power", 1.0)
    trace = MeterTrace(plug, tuple(map(float, range(-5, 105))), tuple(20.0 + k % 2 for k in range(110)))
    before = replace(RECORD, power=Power("shelly://plug", "", (trace,)))
    record = import_log(before, wall_clock_log(tmp_path), "module")
    assert record.power.headline == "shelly://plug"
    assert [trace.meter.name for trace in record.power.traces] == ["shelly://plug", "log:meter.csv"]
    assert record.measurements == before.measurements


def test_the_same_log_twice_is_refused(tmp_path: Path) -> None:
    log = wall_clock_log(tmp_path)
    assert "already" in str(error_of(log, import_log(RECORD, log, "wall")))


@pytest.mark.parametrize("step_s", [0.5, -3600.0])
def test_a_clock_that_was_set_meanwhile(tmp_path: Path, step_s: float) -> None:
    error = error_of(wall_clock_log(tmp_path), replace(RECORD, clock_step_s=step_s))
    assert isinstance(error, RecordError)
    assert "clock moved" in str(error)


@pytest.mark.parametrize("started", ["yesterday", "2026-05-01T12:00:00"])
def test_a_record_that_does_not_say_when_it_began(tmp_path: Path, started: str) -> None:
    assert isinstance(error_of(wall_clock_log(tmp_path), replace(RECORD, started=started)), RecordError)


def test_a_log_of_another_time(tmp_path: Path) -> None:
    error = error_of(wall_clock_log(tmp_path, 3600, 3700))
    assert isinstance(error, MeterError)
    assert "do not overlap" in str(error)


def test_a_gap(tmp_path: Path) -> None:
    log = wall_clock_log(tmp_path)
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:300] + lines[340:]))
    assert "gap of 8.2 s at 49.6 s" in str(error_of(log))


def test_a_log_that_ends_too_early_gives_no_energy_and_says_why(tmp_path: Path) -> None:
    record = import_log(RECORD, wall_clock_log(tmp_path, end_s=45.0), "wall")
    assert record.measurements[0].energy is None
    assert "does not cover" in record.measurements[0].energy_reason


def test_a_log_that_is_too_slow_gives_no_energy_and_says_why(tmp_path: Path) -> None:
    record = import_log(RECORD, wall_clock_log(tmp_path, step_s=5.0), "wall")
    assert record.measurements[0].energy is None
    assert "measure longer" in record.measurements[0].energy_reason


def test_a_long_log_is_cut_to_the_record(tmp_path: Path) -> None:
    trace = import_log(RECORD, wall_clock_log(tmp_path, -1000, 1000, 1.0), "wall").power.traces[0]
    assert -60.5 <= trace.times_s[0] < -58
    assert 158 < trace.times_s[-1] <= 160.5


def test_a_choice_is_passed_on(tmp_path: Path) -> None:
    log = wall_clock_log(tmp_path)
    log.write_text(log.read_text().replace("power_w", "x"))
    record = import_log(RECORD, log, "wall", Choice(None, ("x",), ("W",)))
    assert record.measurements[0].energy is not None
