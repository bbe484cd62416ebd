"""The meters of one run: read from its beginning to its end, and made into the record's section at last."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from edgelm.bench.power.base import AbsentMeter, Meter
from edgelm.bench.power.discover import discover
from edgelm.bench.power.energy import integrate
from edgelm.bench.power.headline import choose_headline, judge_traces, why_none
from edgelm.bench.power.sampler import Sampler
from edgelm.bench.record import Power, Window
from edgelm.errors import InvalidRequestError

IDLE_S = 10.0
"""Rest before and after a measurement, if there is a meter to read."""


@dataclass(frozen=True)
class PowerWishes:
    """How power is measured.

    Attributes:
        meters: addresses of network meters, beside those that are found here.
        assumed_w: watts noted as an assumption.
        idle_s: seconds of rest before and after; None for 10 with a meter and none without.
        found: meters that were found already; None to look for them.
    """

    meters: tuple[str, ...] = ()
    assumed_w: float | None = None
    idle_s: float | None = None
    found: Sequence[Meter | AbsentMeter] | None = None

    def session(self, origin: float) -> PowerSession:
        """The meters of a record that began at `origin`; see PowerSession for what it raises."""
        return PowerSession(origin, self.meters, self.assumed_w, self.found)

    def settings(self) -> dict[str, str]:
        """What is worth keeping in a record."""
        return {"meters": ", ".join(self.meters), "idle_s": str(self.idle_s)}


ANY_METER = PowerWishes()
"""Whatever meter is found here."""


class PowerSession:
    """Reads every meter of the machine between enter and exit. A context manager.

    Args:
        origin: time of the clock that counts as zero in the record.
        addresses: of network meters.
        assumed_w: a figure given by hand; it goes into the record as such and nowhere else.
        meters: what was found already; None to look for it.
        clock, rest: the time, and how to let it pass.

    Raises:
        MeterError: a meter that was asked for by its address does not answer.
        InvalidRequestError: an address of no known kind, or an assumed power that is none.
    """

    def __init__(
        self,
        origin: float,
        addresses: Sequence[str] = (),
        assumed_w: float | None = None,
        meters: Sequence[Meter | AbsentMeter] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        rest: Callable[[float], None] = time.sleep,
    ) -> None:
        if assumed_w is not None and not (math.isfinite(assumed_w) and assumed_w > 0):
            raise InvalidRequestError(f"an assumed power of {assumed_w} W makes no sense; give watts above 0, or none")
        found = discover(addresses) if meters is None else meters
        self._absent = [meter for meter in found if isinstance(meter, AbsentMeter)]
        self._sampler = Sampler([meter for meter in found if not isinstance(meter, AbsentMeter)], origin, clock)
        self.has_meter = len(self._absent) < len(found)
        self._origin, self._assumed_w, self._clock, self._rest = origin, assumed_w, clock, rest
        self._idle: list[Window] = []
        self._running = False

    def idle(self, seconds: float | None = None) -> None:
        """Let the machine rest, and remember when. None: 10 seconds with a meter, none without; a log may be imported later."""
        if seconds is None:
            seconds = IDLE_S if self.has_meter else 0.0
        if seconds <= 0:
            return
        start = self._clock()
        self._rest(seconds)
        self._idle.append(Window(start - self._origin, self._clock() - self._origin))

    def mark(self) -> None:
        """Read the fast meters now: called at both ends of whatever is measured."""
        if self.has_meter:
            self._sampler.mark()

    def power(self) -> Power:
        """The record's section as of now."""
        if self._running:
            self._sampler.read_now()
        traces = judge_traces(self._sampler.traces())
        headline = choose_headline(traces)
        trace = next((trace for trace in traces if trace.meter.name == headline), None)
        idle = tuple(self._idle)
        if trace is None:
            return Power(None, why_none(traces, self._absent), traces, idle, assumed_w=self._assumed_w)
        parts = [integrate(trace, [window])[0] for window in idle]
        watts = tuple(part.joules / part.seconds for part in parts if part is not None)
        return Power(headline, "", traces, idle, watts if len(watts) == len(idle) else (), self._assumed_w)

    def __enter__(self) -> PowerSession:
        self._sampler.start()
        self._running = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._running = False
        self._sampler.stop()
