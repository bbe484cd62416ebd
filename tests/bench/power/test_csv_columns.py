from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from edgelm.bench.power.csv_columns import Choice, Samples, read_samples
from edgelm.errors import MeterError

ZONE = timedelta(hours=2)
NOON = datetime(2026, 5, 1, 12, tzinfo=timezone(ZONE)).timestamp()


def read(folder: Path, text: str, choice: Choice | None = None) -> Samples:
    log = folder / "meter.csv"
    log.write_text(text, encoding="utf-8")
    return read_samples(log, choice or Choice(), ZONE)


def error_of(folder: Path, text: str, choice: Choice | None = None) -> str:
    with pytest.raises(MeterError) as caught:
        read(folder, text, choice)
    return str(caught.value)


@pytest.mark.parametrize(
    ("heading", "cell", "quantity", "value"),
    [
        ("Power (W)", "12.5", "power", 12.5),
        ("power_w", "12.5", "power", 12.5),
        ("Power [mW]", "12500", "power", 12.5),
        ("power_mw", "12500", "power", 12.5),
        ("Watts", "12.5", "power", 12.5),
        ("W", "12.5", "power", 12.5),
        ("apower/W", "12.5", "power", 12.5),
        ("Active Power(kW)", "0.0125", "power", 12.5),
        ("Energy (Wh)", "2", "energy", 7200.0),
        ("energy_kwh", "0.002", "energy", 7200.0),
        ("Joules", "7200", "energy", 7200.0),
        ("total_mWh", "2000", "energy", 7200.0),
    ],
)
def test_common_headings_and_units(tmp_path: Path, heading: str, cell: str, quantity: str, value: float) -> None:
    samples = read(tmp_path, f"time_s,{heading}\n0,{cell}\n1,{cell}\n")
    assert samples.quantity == quantity
    assert samples.values == pytest.approx((value, value))


def test_volts_times_amperes(tmp_path: Path) -> None:
    samples = read(tmp_path, "elapsed,Voltage (V),Current (mA),Temperature (C)\n0,5.1,600,30\n0.5,5.0,700,31\n")
    assert samples.quantity == "power"
    assert samples.values == pytest.approx((3.06, 3.5))


@pytest.mark.parametrize(
    ("heading", "cells"),
    [
        ("Timestamp", ("2026-05-01 12:00:00", "2026-05-01 12:00:01.5")),
        ("Timestamp", ("2026/05/01 12:00:00", "2026/05/01 12:00:01.500")),
        ("time", ("2026-05-01T10:00:00Z", "2026-05-01T10:00:01.5Z")),
        ("time", ("2026-05-01T12:00:00+02:00", "2026-05-01T12:00:01.5+02:00")),
        ("epoch", (str(NOON), str(NOON + 1.5))),
        ("unix_time", (str(int(NOON * 1e3)), str(int(NOON * 1e3) + 1500))),
        ("time_ms", (str(int(NOON * 1e3)), str(int(NOON * 1e3) + 1500))),
        ("ts", (str(int(NOON * 1e6)), str(int(NOON * 1e6) + 1_500_000))),
        ("Date,Time", ("2026-05-01,12:00:00", "2026-05-01,12:00:01.5")),
    ],
)
def test_wall_clock_times(tmp_path: Path, heading: str, cells: tuple[str, str]) -> None:
    samples = read(tmp_path, f"{heading},power_w\n{cells[0]},1\n{cells[1]},2\n")
    assert samples.is_wall_clock
    assert samples.times_s == pytest.approx((NOON, NOON + 1.5), abs=1e-6)


@pytest.mark.parametrize(("heading", "cells"), [("Time (s)", ("0", "1.5")), ("elapsed", ("0.0", "1.5")), ("Time [ms]", ("0", "1500"))])
def test_times_from_the_logs_own_start(tmp_path: Path, heading: str, cells: tuple[str, str]) -> None:
    samples = read(tmp_path, f"{heading},power_w\n{cells[0]},1\n{cells[1]},2\n")
    assert not samples.is_wall_clock
    assert samples.times_s == pytest.approx((0, 1.5))


def test_semicolons_decimal_commas_comments_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeff# exported by a meter\n\nZeit;Leistung (W)\n2026-05-01 12:00:00,250;12,5\n2026-05-01 12:00:01,250;13,5\n"
    samples = read(tmp_path, text, Choice(time="Zeit"))
    assert samples.values == (12.5, 13.5)
    assert samples.times_s[0] == pytest.approx(NOON + 0.25)


def test_the_user_names_columns_and_units(tmp_path: Path) -> None:
    text = "n,when,in,out\n1,0,100,2000\n2,1,100,3000\n"
    assert read(tmp_path, text, Choice("when", ("out",), ("mW",))).values == (2.0, 3.0)
    assert read(tmp_path, "t,U,I\n0,5,2\n1,5,3\n", Choice(None, ("U", "I"), ("V", "A"))).values == (10.0, 15.0)


@pytest.mark.parametrize(
    ("text", "choice", "said"),
    [
        ("time_s,cpu (W),board (W)\n0,1,2\n1,1,2\n", Choice(), "which column is the power"),
        ("time_s,power\n0,1\n1,1\n", Choice(), "which column is the power"),
        ("time_s,power\n0,1\n1,1\n", Choice(None, ("power",)), "give --unit"),
        ("time_s,power\n0,1\n1,1\n", Choice(None, ("power",), ("MW",)), "no unit"),
        ("time_s,power\n0,1\n1,1\n", Choice(None, ("power",), ("V",)), "give --unit"),
        ("time_s,power\n0,1\n1,1\n", Choice(None, ("power",), ("W", "W")), "one --unit for each"),
        ("time_s,power_w\n0,1\n1,1\n", Choice(None, ("Power",)), "0 columns 'Power'"),
        ("power_w,voltage (V)\n1,5\n1,5\n", Choice(), "which column is the time"),
        ("time,timestamp,power_w\n0,0,1\n1,1,1\n", Choice(), "which column is the time"),
        ("", Choice(), "empty"),
        ("time_s,power_w\n", Choice(), "no readings"),
        ("time_s,power_w\n0,1\n", Choice(), "two readings"),
        ("time_s,power_w\n0,1\n1\n", Choice(), "line 3 has 1 cells"),
        ("time_s,power_w\n0,1\n1,\n", Choice(), "line 3: '' is no number"),
        ("time_s,power_w\n0,1\n1,nan\n", Choice(), "no number"),
        ("time_s,power_w\n0,1\n1,inf\n", Choice(), "no number"),
        ("time_s,power_w\n0,1\n1,-2\n", Choice(), "less than nothing"),
        ("time_s,power_w\n0,1\n1,2\n1,3\n", Choice(), "line 4: its time is that of the line before"),
        ("time_s,power_w\n0,1\n2,2\n1,3\n", Choice(), "line 4: time goes backwards"),
        ("time_s,energy_j\n0,10\n1,20\n2,5\n", Choice(), "line 4: its counter goes backwards"),
        ("time,power_w\n01.05.2026 12:00:00,1\n01.05.2026 12:00:01,1\n", Choice(), "is no time"),
        ("time,power_w\n12:00:00,1\n12:00:01,1\n", Choice(), "is no time"),
        ("time,power_w\n2026-05-01,1\n2026-05-02,1\n", Choice(), "a day and no time"),
        ("time,power_w\n5,1\n2026-05-01 12:00:00,1\n", Choice(), "mixes kinds of times"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path: Path, text: str, choice: Choice, said: str) -> None:
    assert said in error_of(tmp_path, text, choice)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "meter.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MeterError, match="cannot be read"):
        read_samples(tmp_path / "meter.csv", Choice(), ZONE)
    with pytest.raises(MeterError, match="cannot be read"):
        read_samples(tmp_path / "nothing.csv", Choice(), ZONE)
