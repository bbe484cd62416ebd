"""Energies of windows: right within 1% where the trace carries them, none at all where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from power_machine import Curve, info, play, trace

from edgelm.bench.power.energy import energy_of, integrate
from edgelm.bench.power.file_meter import FileMeter
from edgelm.bench.record import MeterTrace, Power, Window

CURVE = Curve()
WINDOWS = [Window(1.234, 2.891), Window(3.05, 6.07), Window(7.777, 9.5)]
TRUE_J = sum(CURVE.joules(window.end_s) - CURVE.joules(window.start_s) for window in WINDOWS)


def power_of(trace: MeterTrace, idle_w: tuple[float, ...] = ()) -> Power:
    return Power(trace.meter.name, traces=(trace,), idle_w=idle_w)


@pytest.mark.parametrize("start_j", [0.0, 65_536.0 - 30.0])
def test_counter_recovers_a_known_curve(tmp_path: Path, start_j: float) -> None:
    file = tmp_path / "energy_uj"
    said = play(FileMeter(info(), file, 65_536.0), file, CURVE, 10, 0.05, start_j)
    energy, reason = energy_of(power_of(said), WINDOWS)
    assert energy is not None, reason
    assert energy.gross_j == pytest.approx(TRUE_J, rel=0.01)
    assert energy.seconds == pytest.approx(sum(window.end_s - window.start_s for window in WINDOWS))
    assert energy.uncertainty is not None
    assert 0.02 < energy.uncertainty < 0.03


def test_samples_recover_a_known_curve(tmp_path: Path) -> None:
    file = tmp_path / "power1_input"
    said = play(FileMeter(info(quantity="power", period_s=0.02), file), file, CURVE, 10, 0.02)
    energy, reason = energy_of(power_of(said), WINDOWS)
    assert energy is not None, reason
    assert energy.gross_j == pytest.approx(TRUE_J, rel=0.01)


def test_the_error_of_sparse_samples_is_within_what_is_stated(tmp_path: Path) -> None:
    file = tmp_path / "power1_input"
    said = play(FileMeter(info(quantity="power", period_s=0.27), file), file, CURVE, 10, 0.27)
    integral, reason = integrate(said, WINDOWS)
    assert integral is not None, reason
    assert abs(integral.joules - TRUE_J) / TRUE_J < 2 * integral.sampling
    assert integral.sampling > 0.01


@pytest.mark.parametrize("seconds", [3.1, 3.5, 4.0, 60.0])
def test_a_meter_that_comes_late_is_refused_or_within_what_is_stated(seconds: float) -> None:
    """A plug that shows the mean of the second before, once a second: work takes 20 W, the pauses of two seconds between it 8 W."""
    windows = [Window(10 + n * (seconds + 2), 10 + n * (seconds + 2) + seconds) for n in range(6)]
    work_s = lambda a, b: sum(max(0.0, min(b, w.end_s) - max(a, w.start_s)) for w in windows)  # noqa: E731
    values = [8 + 12 * work_s(t - 1.3, t - 0.3) + 0.01 * (t * 7 % 3) for t in range(round(windows[-1].end_s) + 10)]
    integral, reason = integrate(trace(values, every_s=1.0, quantity="power", period_s=1.0), windows)
    if integral is None:
        assert "too short for it" in reason
    else:
        assert abs(integral.joules / (20 * seconds * len(windows)) - 1) < 2 * integral.sampling
        assert seconds < 10 or integral.sampling < 0.05


def test_net_is_without_idle() -> None:
    energy, reason = energy_of(power_of(trace([n * 2.0 for n in range(101)]), idle_w=(4.0, 4.2)), [Window(2, 8)])
    assert energy is not None
    assert (energy.gross_j, energy.net_j, reason) == (pytest.approx(120), pytest.approx(120 - 6 * 4.1), "")


@pytest.mark.parametrize(
    ("idle_w", "reason"),
    [
        ((), "idle was not measured both before and after"),
        ((4.0,), "idle was not measured both before and after"),
        ((4.0, 12.0), r"took 4.00, 12.00 W in turn, which leaves net energy uncertain by 33%"),
        ((21.0, 22.0), "took 21.50 W, about what was measured (20.00 W)"),
        ((19.3, 19.3), "took 19.30 W, about what was measured (20.00 W)"),
    ],
)
def test_net_is_missing_with_a_reason(idle_w: tuple[float, ...], reason: str) -> None:
    energy, why = energy_of(power_of(trace([n * 2.0 for n in range(101)]), idle_w), [Window(2, 8)])
    assert energy is not None
    assert energy.gross_j == pytest.approx(120)
    assert energy.net_j is None
    assert reason in why


def test_why_the_idle_watts_are_not_known_is_told() -> None:
    idle = (Window(0.0, 0.03), Window(9.0, 9.5))
    energy, why = energy_of(Power("m", traces=(trace([n * 2.0 for n in range(101)]),), idle=idle), [Window(2, 8)])
    assert energy is not None
    assert energy.net_j is None
    assert "both before and after (m: 0.03 s are too short for it" in why


def test_no_meter_no_energy() -> None:
    assert energy_of(Power(reason="no meter here"), [Window(0, 1)]) == (None, "no meter here")


def test_uncertainty_is_unknown_where_the_meters_own_is() -> None:
    energy, _ = energy_of(power_of(trace([n * 2.0 for n in range(101)], uncertainty=None)), [Window(2, 8)])
    assert energy is not None
    assert energy.uncertainty is None


def test_windows_too_short_for_the_readings_are_refused() -> None:
    readings = trace([n * 2.0 for n in range(101)])
    energy, reason = energy_of(power_of(readings), [Window(2.03, 2.08)])
    assert energy is None
    assert "too short" in reason
    energy, _ = energy_of(power_of(readings), [Window(2.0, 2.1)])  # readings at both ends tell what is between them
    assert energy is not None
    assert energy.gross_j == pytest.approx(2.0)
