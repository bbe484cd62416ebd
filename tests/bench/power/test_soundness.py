"""Traces that must not be believed: gaps, stalls, stuck and missing values."""

from __future__ import annotations

import pytest
from power_machine import info, trace

from edgelm.bench.power.soundness import trace_problem, window_problem
from edgelm.bench.record import MeterTrace, Window

WINDOW = [Window(5.0, 9.0)]


def counting(*spans: tuple[int, float]) -> MeterTrace:
    """A counter that gains so many joules at each of so many steps of 0.1 s."""
    values = [0.0]
    for n, step in spans:
        values += [values[-1] + step * (k + 1) for k in range(n)]
    return trace(values)


def showing(*spans: tuple[int, float]) -> MeterTrace:
    """Watts of so many steps of 0.1 s, with a little noise where they are not whole."""
    values = [watts + (0.01 * (k % 7) if watts % 1 else 0) for n, watts in spans for k in range(n)]
    return trace(values, quantity="power", period_s=0.1)


def test_sound_traces() -> None:
    assert window_problem(counting((150, 2.0)), WINDOW) == ""
    assert window_problem(showing((150, 2.5)), WINDOW) == ""


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (counting((60, 2.0), (6, 0.0), (84, 2.0)), "stood still for 0.60 s"),
        (counting((80, 2.0), (70, 0.0)), "stood still for 7.00 s"),
        (counting((80, 2.0)), "does not cover"),
        (showing((60, 2.5), (150, 3.0)), "the same watts to the last digit for 14.9 s"),
        (showing((80, 2.5)), "does not cover"),
        (trace([2.5, 2.6] * 10, every_s=2.0, quantity="power", period_s=2.0), "2 in a window of 4 s; 3 are needed"),
    ],
)
def test_windows_that_a_trace_does_not_carry(said: MeterTrace, problem: str) -> None:
    assert problem in window_problem(said, WINDOW)


def noisy(n: int) -> list[float]:
    """Watts that repeat now and then, as those of a meter with one decimal do."""
    return [20 + round(3 * ((k * 0.618) % 1), 1) for k in range(n)]


def test_a_value_that_is_repeated_unlike_before() -> None:
    stale = trace([*noisy(40), *[21.7] * 12, *noisy(40)], every_s=1.0, quantity="power", period_s=1.0)
    said = "it showed the same watts to the last digit for 11.0 s, unlike before"
    assert window_problem(stale, [Window(5, 80)]) == said
    assert window_problem(stale, [Window(n, n + 4.5) for n in range(5, 80, 5)]) == said  # no window is as long as the stall
    assert window_problem(stale, [Window(5, 38)]) == ""
    assert window_problem(stale, [Window(55, 80)]) == ""


def test_a_machine_that_rests_steadily_is_not_taken_for_a_stall() -> None:
    said = trace([*[3.1] * 20, *noisy(60), *[3.1] * 20], every_s=1.0, quantity="power", period_s=1.0)
    assert window_problem(said, [Window(0, 18)]) == ""  # at rest
    assert window_problem(said, [Window(19, 81)]) == ""  # at work, the edges of rest included
    long_rest = trace([*[3.1] * 60, *noisy(60)], every_s=1.0, quantity="power", period_s=1.0)
    assert window_problem(long_rest, [Window(58.5, 110)]) == ""
    assert "for 59.0 s" in window_problem(long_rest, [Window(20, 110)])


def test_a_stall_elsewhere_does_no_harm() -> None:
    assert window_problem(counting((10, 2.0), (30, 0.0), (90, 2.0)), WINDOW) == ""


def test_a_gap_in_samples() -> None:
    times = [n * 0.1 for n in range(60)] + [8.0 + n * 0.1 for n in range(60)]
    said = MeterTrace(info(quantity="power", period_s=0.1), tuple(times), tuple(5 + 0.01 * (n % 7) for n in range(120)))
    assert "no new value for 2.1 s" in window_problem(said, WINDOW)


def test_a_gap_does_a_counter_no_harm() -> None:
    times = [n * 0.1 for n in range(60)] + [8.0 + n * 0.1 for n in range(60)]
    assert window_problem(MeterTrace(info(), tuple(times), tuple(5 * t for t in times)), WINDOW) == ""


def test_a_counter_in_coarse_steps_does_not_stand_still() -> None:
    working = [60.0 * (n // 10) for n in range(600)]
    idle = [working[-1] + 60.0 * (n // 80) for n in range(600)]
    assert window_problem(trace(working + idle), [Window(5, 55)]) == ""
    assert window_problem(trace(working + idle), [Window(65, 115)]) == ""


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (trace([1, 2], problem="gone"), "gone"),
        (trace([]), "no value"),
        (trace([1.0]), "one value only"),
        (trace([7.0] * 5), "stood still in all 5"),
        (trace([0.0] * 5, quantity="power"), "0 W in all 5"),
        (trace([4.0] * 200, quantity="power"), "the same watts"),
        (trace([3.0, 2.0]), "backwards"),
        (trace([3.0, -2.0], quantity="power"), "less than nothing"),
        (trace([3.0, float("nan")]), "no numbers"),
        (MeterTrace(info(), (0.0, 0.0), (1.0, 2.0)), "times do not grow"),
        (MeterTrace(info(), (0.0, 1.0, 2.0), (1.0, 2.0)), "3 times for 2 values"),
    ],
)
def test_traces_that_are_not_sound(said: MeterTrace, problem: str) -> None:
    assert problem in trace_problem(said)


@pytest.mark.parametrize(
    ("windows", "problem"),
    [
        ([], "nothing to take energy of"),
        ([Window(5, 5)], "no length"),
        ([Window(6, 8), Window(5, 7)], "overlap"),
    ],
)
def test_windows_that_make_no_sense(windows: list[Window], problem: str) -> None:
    assert problem in window_problem(counting((150, 2.0)), windows)
