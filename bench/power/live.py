"""What meters show now, for a person who looks on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgelm.bench.record import MeterInfo, MeterTrace

_NOW_S = 1.0
_OLD_S = 3.0
_OLD_PERIODS = 5


@dataclass(frozen=True)
class Look:
    """One meter at one moment.

    Attributes:
        watts: mean of the last second, or of the meter's own period if that is longer; None if it has said nothing for long.
        mean_w: since the first reading; None of fewer than two.
        problem: why it is read no more, "" if it is.
    """

    meter: MeterInfo
    watts: float | None
    mean_w: float | None
    problem: str = ""


def look(trace: MeterTrace, now_s: float) -> Look:
    """What the trace tells at `now_s`, in the trace's own time."""
    times = np.array(trace.times_s)
    if len(times) < (2 if trace.meter.quantity == "energy" else 1):
        return Look(trace.meter, None, None, trace.problem)
    is_old = now_s - times[-1] > max(_OLD_S, _OLD_PERIODS * trace.meter.period_s)
    # from the last reading that is a second old, so that the span has a second or more
    first = max(0, int(np.searchsorted(times, times[-1] - max(_NOW_S, trace.meter.period_s), "right")) - 1)
    watts = None if is_old or trace.problem else _mean_w(trace, first)
    return Look(trace.meter, watts, _mean_w(trace, 0), trace.problem)


def _mean_w(trace: MeterTrace, first: int) -> float:
    times, values = np.array(trace.times_s[first:]), np.array(trace.values[first:])
    if len(times) < 2:
        return float(values[-1])
    joules = values[-1] - values[0] if trace.meter.quantity == "energy" else np.trapezoid(values, times)
    return float(joules / (times[-1] - times[0]))
