"""Joules from a meter's trace: counters by difference, watts by the trapezoid rule, and how uncertain that is.

Between two readings a counter is taken to grow evenly, and watts are taken to change evenly; so a window may begin and end anywhere.
The sampling's own uncertainty is told from the readings themselves:

    counter    an end of a window at the fraction f of the way between two readings of difference d: d^2 f (1 - f) / 3, as of a
               Brownian bridge, which is the uniform error's d^2 / 12 in the middle and nothing at a reading; and the energy of one
               period, by which the counter may be behind: a uniform error
    watts      the mean square of successive differences (von Neumann 1941) is twice the variance of what changes faster than the
               meter shows; over n readings the mean has the variance msd / (2 n); the ends as above; and the greatest difference it would
               make if all readings came late by up to two periods: many a meter shows the mean of a period, until the next one is over

What cannot be told within 10% is not told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.bench.power.soundness import window_problem
from edgelm.bench.record import Energy, MeterTrace, Power, Window

_MAX_UNCERTAINTY = 0.1
_DELAYS = (0.5, 1.0, 1.5, 2.0)  # in periods
_MAX_NET_DOUBT = 0.1
_MIN_NET = 0.05  # of gross: what is less is lost in how the idle machine varies


@dataclass(frozen=True)
class Integral:
    """Energy of a trace in windows.

    Attributes:
        joules: in all of them.
        seconds: of all of them.
        sampling: relative uncertainty that comes from the readings' spacing.
    """

    joules: float
    seconds: float
    sampling: float


def energy_of(power: Power, windows: Sequence[Window]) -> tuple[Energy | None, str]:
    """What the headline meter counted in the windows together, gross and net of the idle machine.

    Net is gross less the mean of the idle watts before and after, times the windows' seconds.

    Returns:
        The energy and why its net part is missing, if it is; or None and why there is none.
    """
    trace = next((trace for trace in power.traces if trace.meter.name == power.headline), None)
    if trace is None:
        return None, power.reason or "no power meter was read"
    integral, reason = integrate(trace, windows)
    if integral is None:
        return None, reason
    own = trace.meter.uncertainty
    uncertainty = None if own is None else math.hypot(own, integral.sampling)
    net_j, net_reason = _net(integral, trace, power)
    return Energy(trace.meter.name, trace.meter.kind, integral.seconds, integral.joules, net_j, uncertainty), net_reason


def integrate(trace: MeterTrace, windows: Sequence[Window]) -> tuple[Integral | None, str]:
    """Energy of one trace in the windows together, or None and why it does not carry one."""
    problem = window_problem(trace, windows)
    if problem:
        return None, f"{trace.meter.name}: {problem}"
    times, values = np.array(trace.times_s), np.array(trace.values)
    measure = _counted if trace.meter.quantity == "energy" else _integrated
    parts = [measure(times, values, trace.meter.period_s, window) for window in windows]
    joules = sum(part.joules for part in parts)
    seconds = sum(window.end_s - window.start_s for window in windows)
    if joules <= 0:
        return None, f"{trace.meter.name}: it shows no energy at all in {seconds:.2f} s"
    late_j = max(map(abs, map(sum, zip(*(part.late_j for part in parts), strict=True))))
    sampling = math.sqrt(sum(part.variance for part in parts) + late_j**2) / joules
    if sampling > _MAX_UNCERTAINTY:
        spans = f"{seconds:.3g} s are" if len(windows) == 1 else f"{len(windows)} times {seconds / len(windows):.3g} s are"
        return None, (
            f"{trace.meter.name}: {spans} too short for it: its readings leave an uncertainty of {sampling:.0%};"
            " measure longer (more tokens, a longer rest)"
        )
    return Integral(joules, seconds, sampling), ""


@dataclass(frozen=True)
class _Part:
    """Joules of one window, their variance, and by how much they would differ for each of _DELAYS."""

    joules: float
    variance: float
    late_j: tuple[float, ...] = (0.0,) * len(_DELAYS)


def _counted(times: NDArray[np.float64], values: NDArray[np.float64], period_s: float, window: Window) -> _Part:
    edges = np.array([window.start_s, window.end_s])
    start_j, end_j = np.interp(edges, times, values)
    joules = float(end_j - start_j)
    behind = period_s * joules / (window.end_s - window.start_s)
    return _Part(joules, _edge_variance(times, values, edges) + 2 * behind**2 / 12)


def _integrated(times: NDArray[np.float64], values: NDArray[np.float64], period_s: float, window: Window) -> _Part:
    edges = np.array([window.start_s, window.end_s])
    inside = (times > window.start_s) & (times < window.end_s)
    steps = np.diff(values[inside])
    variance_of_mean = float(np.mean(steps**2)) / 2 / inside.sum()
    of_edges = _edge_variance(times, values, edges) * period_s**2
    joules = _trapezoid(times, values, edges)
    late_j = tuple(_trapezoid(times, values, edges + n * period_s) - joules for n in _DELAYS)
    return _Part(joules, variance_of_mean * (window.end_s - window.start_s) ** 2 + of_edges, late_j)


def _trapezoid(times: NDArray[np.float64], values: NDArray[np.float64], edges: NDArray[np.float64]) -> float:
    t = np.concatenate([edges[:1], times[(times > edges[0]) & (times < edges[1])], edges[1:]])
    return float(np.trapezoid(np.interp(t, times, values), t))


def _edge_variance(times: NDArray[np.float64], values: NDArray[np.float64], edges: NDArray[np.float64]) -> float:
    """Of what is read off at the edges, each between two readings."""
    after = np.clip(np.searchsorted(times, edges), 1, len(times) - 1)
    change, gap = values[after] - values[after - 1], times[after] - times[after - 1]
    f = np.clip((edges - times[after - 1]) / gap, 0, 1)
    return float(np.sum(change**2 * f * (1 - f)) / 3)


def _net(integral: Integral, trace: MeterTrace, power: Power) -> tuple[float | None, str]:
    idle_w = power.idle_w
    if len(idle_w) < 2:
        unknown = next((reason for window in power.idle if (reason := integrate(trace, [window])[1])), "")
        return None, f"idle was not measured both before and after{f' ({unknown})' if unknown else ''}"
    idle_j = float(np.mean(idle_w)) * integral.seconds
    net_j = integral.joules - idle_j
    doubt_j = (max(idle_w) - min(idle_w)) / 2 * integral.seconds
    if net_j < _MIN_NET * integral.joules:
        return None, f"the idle machine took {np.mean(idle_w):.2f} W, about what was measured ({integral.joules / integral.seconds:.2f} W)"
    if doubt_j > _MAX_NET_DOUBT * net_j:
        shown = ", ".join(f"{watts:.2f}" for watts in idle_w)
        return None, f"the idle machine took {shown} W in turn, which leaves net energy uncertain by {doubt_j / net_j:.0%}"
    return net_j, ""
