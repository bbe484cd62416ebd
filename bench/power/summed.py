"""Several counters that share no joule, such as the packages of a machine with two sockets, as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from edgelm.bench.power.base import Meter, Reading
from edgelm.bench.power.counter import Counter
from edgelm.bench.record import MeterInfo


class SummedMeter:
    """The joules that all parts gained since the first reading; it fails as soon as one of them does.

    Its parts can be read on their own beside it: each then names it in `within`, so that nobody adds them up again.
    """

    wrap_j: float | None = None

    def __init__(self, name: str, domain: str, parts: Sequence[Meter], clock: Callable[[], float] = time.perf_counter) -> None:
        first = parts[0].info
        own = [part.info.uncertainty for part in parts]
        self.info: MeterInfo = replace(
            first,
            name=name,
            domain=domain,
            within=None,
            period_s=max(part.info.period_s for part in parts),
            # their errors have the same causes, so they do not cancel
            uncertainty=None if None in own else max(value for value in own if value is not None),
        )
        self._parts = [(part, Counter(part.wrap_j, part.info.period_s)) for part in parts]
        self._clock = clock

    def read(self) -> Reading:
        """Joules of all parts together.

        Raises:
            MeterError: a part cannot be read, or its counter makes no sense.
        """
        return Reading(sum(counter.advance(part.read().value, self._clock()) for part, counter in self._parts))

    def close(self) -> None:
        """The parts are closed by whoever reads them."""
        for part, _ in self._parts:
            part.close()
