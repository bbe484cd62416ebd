"""Whether a trace may be believed: in itself, and in the windows that energy is wanted for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgelm.bench.record import MeterTrace, Window

_STUCK_READINGS = 30
_STUCK_S = 10.0
_STUCK_CHANCE = 1e-3
_STUCK_PERIODS = 5
_STALL_PERIODS = 5
_STALL_S = 0.2
_GAP_PERIODS = 5
_GAP_S = 0.5
_MIN_READINGS = 3


def trace_problem(trace: MeterTrace) -> str:
    """Why no energy can be taken from the whole trace; "" if it can."""
    if trace.problem:
        return trace.problem
    times, values = np.array(trace.times_s), np.array(trace.values)
    if len(times) != len(values):
        return f"it has {len(times)} times for {len(values)} values"
    if len(times) < 2:
        return f"it gave {'no value' if len(times) == 0 else 'one value only'}"
    if not (np.isfinite(times).all() and np.isfinite(values).all()):
        return "it has values that are no numbers"
    if (np.diff(times) <= 0).any():
        return "its times do not grow"
    if trace.meter.quantity == "energy" and (np.diff(values) < 0).any():
        return "its counter goes backwards"
    if (values < 0).any():
        return "it shows less than nothing"
    if trace.meter.quantity == "energy":
        return f"its counter stood still in all {len(values)} readings" if values[-1] == values[0] else ""
    if not values.any():
        return f"it showed 0 W in all {len(values)} readings"
    # a meter that never moved at all; one that stopped in between is told where energy is wanted
    return _stuck(times, values, times[-1] - times[0], [Window(times[0], times[-1])]) if (values == values[0]).all() else ""


def window_problem(trace: MeterTrace, windows: Sequence[Window]) -> str:
    """Why no energy of the windows can be taken from the trace; "" if it can."""
    problem = trace_problem(trace) or _order_problem(windows)
    if problem:
        return problem
    times, values = np.array(trace.times_s), np.array(trace.values)
    spacing = max(trace.meter.period_s, float(np.median(np.diff(times))))
    if trace.meter.quantity == "energy":
        return next(filter(None, (_counter_problem(times, values, spacing, window) for window in windows)), "")
    problem = next(filter(None, (_watts_problem(times, spacing, window) for window in windows)), "")
    return problem or _stuck(times, values, spacing, windows) or _unlike_before(times, values, spacing, windows)


def _order_problem(windows: Sequence[Window]) -> str:
    if not windows:
        return "there is nothing to take energy of"
    if not all(window.end_s > window.start_s for window in windows):
        return "a window has no length"
    ordered = sorted(windows, key=lambda window: window.start_s)
    if any(later.start_s < earlier.end_s for earlier, later in pairwise(ordered)):
        return "windows overlap, so energy would count twice"
    return ""


def _counter_problem(times: NDArray[np.float64], values: NDArray[np.float64], spacing: float, window: Window) -> str:
    if window.start_s < times[0] or window.end_s > times[-1]:
        return _not_read(times, window)
    changes = np.flatnonzero(np.diff(values) > 0) + 1
    inside = changes[(times[changes] > window.start_s) & (times[changes] < window.end_s)]
    # a counter of coarse steps changes seldom, and more seldom where less is used
    usual = max(float(np.median(np.diff(times[some]))) for some in (changes, inside) if len(some) > 1) if len(changes) > 1 else spacing
    # where the counter stood still: from each change to the last reading before the next one
    starts = times[np.concatenate([[0], changes])]
    ends = times[np.concatenate([changes - 1, [len(times) - 1]])]
    still = _longest_overlapping(starts, ends, window)
    if still > max(_STALL_S, _STALL_PERIODS * max(spacing, usual)):
        return f"its counter stood still for {still:.2f} s"
    return ""


def _watts_problem(times: NDArray[np.float64], spacing: float, window: Window) -> str:
    if window.start_s < times[0] - spacing or window.end_s > times[-1] + spacing:
        return _not_read(times, window)
    gap = _longest_overlapping(times[:-1], times[1:], window)
    if gap > max(_GAP_S, _GAP_PERIODS * spacing):
        return f"it gave no new value for {gap:.1f} s"
    n_inside = int(((times > window.start_s) & (times < window.end_s)).sum())
    if n_inside < _MIN_READINGS:
        length = window.end_s - window.start_s
        return (
            f"it has a new value every {spacing:.3g} s, which is {n_inside} in a window of {length:.3g} s;"
            f" {_MIN_READINGS} are needed: measure longer, for example with more tokens"
        )
    return ""


def _stuck(times: NDArray[np.float64], values: NDArray[np.float64], spacing: float, windows: Sequence[Window]) -> str:
    """A value repeated for so long that no running machine is so steady, and not at a window's edge alone."""
    first, last = _runs(values)
    is_long = (last - first >= _STUCK_READINGS - 1) & (times[last] - times[first] >= _STUCK_S)
    for start_s, end_s in zip(times[first[is_long]], times[last[is_long]], strict=True):
        shares = [(min(end_s, w.end_s) - max(start_s, w.start_s), w.end_s - w.start_s) for w in windows]
        if any(shared >= min(length, _STUCK_PERIODS * spacing) for shared, length in shares):
            return _same(end_s - start_s)
    return ""


def _unlike_before(times: NDArray[np.float64], values: NDArray[np.float64], spacing: float, windows: Sequence[Window]) -> str:
    """A value repeated more often than chance allows, by how often the other readings in the windows repeat the one before.

    Of n readings that repeat with the probability p, a run of k repetitions is seen n p^k times. p is the rule of succession (Laplace)
    with a prior of 4 repetitions in 5, so that a machine that is steady from the beginning is not suspected.
    """
    span = (times >= min(w.start_s for w in windows)) & (times <= max(w.end_s for w in windows))
    times, values = times[span], values[span]
    first, last = _runs(values)
    longest = int((last - first).argmax())
    start, end = int(first[longest]), int(last[longest])
    is_inside = np.any([(times[1:] > w.start_s) & (times[:-1] < w.end_s) for w in windows], axis=0)
    is_inside[start:end] = False
    n, n_repeated = int(is_inside.sum()), int((np.diff(values) == 0)[is_inside].sum())
    chance = (n + end - start) * ((n_repeated + 4) / (n + 5)) ** (end - start)
    seconds = float(times[end] - times[start])
    return _same(seconds) + ", unlike before" if chance < _STUCK_CHANCE and seconds > max(_GAP_S, _STUCK_PERIODS * spacing) else ""


def _runs(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last index of every run of equal values."""
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1, [len(values)]])
    return bounds[:-1], bounds[1:] - 1


def _same(seconds: float) -> str:
    return f"it showed the same watts to the last digit for {seconds:.1f} s"


def _longest_overlapping(starts: NDArray[np.float64], ends: NDArray[np.float64], window: Window) -> float:
    touching = (starts < window.end_s) & (ends > window.start_s)
    return float((ends - starts)[touching].max(initial=0.0))


def _not_read(times: NDArray[np.float64], window: Window) -> str:
    return f"it was read from {times[0]:.2f} to {times[-1]:.2f} s, which does not cover {window.start_s:.2f} to {window.end_s:.2f} s"
