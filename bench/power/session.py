"""The meters of one run: read from its beginning to its end, and made into the record's section at last."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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

_SETTLE_PERIODS = 2
_MAX_SETTLE_S = 3.0
_SLEPT_S = 0.1


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
        asleep: seconds that the machine has slept since it was started.

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
        asleep: Callable[[], float] | None = None,
    ) -> None:
        if assumed_w is not None and not (math.isfinite(assumed_w) and assumed_w > 0):
            raise InvalidRequestError(f"an assumed power of {assumed_w} W makes no sense; give watts above 0, or none")
        found = discover(addresses) if meters is None else meters
        self._absent = [meter for meter in found if isinstance(meter, AbsentMeter)]
        present = [meter for meter in found if not isinstance(meter, AbsentMeter)]
        self._sampler = Sampler(present, origin, clock)
        # a slow meter still shows the work when the rest begins
        self._settle_s = min(_MAX_SETTLE_S, _SETTLE_PERIODS * max((meter.info.period_s for meter in present), default=0.0))
        self._asleep = asleep or seconds_asleep
        self._asleep_before = self._asleep()
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
        self._rest(self._settle_s)
        start = self._clock()
        self.mark()
        self._rest(seconds)
        self.mark()
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
        slept_s = self._asleep() - self._asleep_before
        if slept_s > _SLEPT_S:
            traces = tuple(replace(trace, problem=trace.problem or _slept(slept_s)) for trace in traces)
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


def seconds_asleep() -> float:
    """Seconds since the machine's start in which it was suspended; always 0 where the system does not tell (it does on Linux)."""
    if sys.platform != "linux":
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def _slept(seconds: float) -> str:
    return f"the machine was suspended for {seconds:.1f} s meanwhile, in which its meters may have gone on, but its clock did not"
