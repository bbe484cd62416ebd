"""An energy counter's readings as joules that only grow: wraps undone, and refused where they cannot be told from anything else."""

from __future__ import annotations

import math

from edgelm.errors import MeterError

MAX_W = 4000.0
"""More than any one meter here can see: a socket of 16 A at 230 V gives 3,680 W. What would need more is no energy but a fault."""


class Counter:
    """Adds up what a counter gains from one reading to the next.

    Args:
        wrap_j: joules at which it begins anew from zero; None if it never does.
        period_s: how often it has a new value; between two readings it may gain what was used in so much more time.
    """

    def __init__(self, wrap_j: float | None, period_s: float) -> None:
        self._wrap_j = wrap_j
        self._period_s = period_s
        self._last: tuple[float, float] | None = None
        self._total_j = 0.0

    def advance(self, value_j: float, time_s: float) -> float:
        """Joules since the first reading, the one given now included.

        Raises:
            MeterError: the counter went backwards without a wrap, gained more than can be, may have wrapped more than once,
                or is no number.
        """
        if not (math.isfinite(value_j) and value_j >= 0):
            raise MeterError(f"its counter reads {value_j} J")
        if self._last is not None:
            self._total_j += self._gained(value_j, time_s, *self._last)
        self._last = value_j, time_s
        return self._total_j

    def _gained(self, value_j: float, time_s: float, last_j: float, last_s: float) -> float:
        seconds = time_s - last_s
        possible = MAX_W * (seconds + self._period_s)
        if self._wrap_j is not None and possible >= self._wrap_j:
            raise MeterError(
                f"it was not read for {seconds:.1f} s, in which a counter that begins anew every {self._wrap_j:.0f} J"
                " may have done so more than once"
            )
        gained = value_j - last_j
        if gained < 0 and self._wrap_j is not None and gained + self._wrap_j <= possible:
            gained += self._wrap_j
        if gained < 0:
            raise MeterError(f"its counter went back from {last_j:.3f} to {value_j:.3f} J: it was reset")
        if gained > possible:
            raise MeterError(f"its counter jumped by {gained:.0f} J in {seconds:.3f} s, which no machine uses")
        return gained
