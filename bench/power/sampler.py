"""Reading meters beside a benchmark: every meter at its own period, in a thread of its own, so that a slow one delays no other."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from edgelm.bench.power.base import Meter, Reading
from edgelm.bench.power.counter import MAX_W, Counter
from edgelm.bench.record import MeterTrace
from edgelm.errors import MeterError

MIN_PERIOD_S = 0.05
"""Of reading: what a counter gained is exact at any rate, and every reading takes a little from the engines."""

_FIRST_READING_S = 2.0
_LAST_READING_S = 5.0
_EDGE_READING_S = 0.02


class TraceLog:
    """Turns one meter's readings into its trace. May be written by one thread and looked at by others."""

    def __init__(self, meter: Meter, origin: float) -> None:
        self._info = meter.info
        self.origin = origin
        self._counter = Counter(meter.wrap_j, self._info.period_s) if self._info.quantity == "energy" else None
        self._lock = threading.Lock()
        self._stamp: float | None = None
        self._times: list[float] = []
        self._values: list[float] = []
        self._problem = ""

    def add(self, reading: Reading, time_s: float) -> None:
        """Take a reading made at `time_s` of the clock. The stamp or the time of the last one brings nothing new.

        Raises:
            MeterError: it contradicts the readings before, or is no power or energy.
        """
        with self._lock:
            is_known = reading.stamp is not None and reading.stamp == self._stamp
            is_late = bool(self._times) and time_s - self.origin <= self._times[-1]
            if self._problem or is_known or is_late:
                return
            value = self._counter.advance(reading.value, time_s) if self._counter else _watts(reading.value)
            self._stamp = reading.stamp
            self._times.append(time_s - self.origin)
            self._values.append(value)

    def fail(self, problem: str) -> None:
        """End the trace; the first problem stays."""
        with self._lock:
            self._problem = self._problem or problem

    @property
    def has_failed(self) -> bool:
        return bool(self._problem)

    def trace(self) -> MeterTrace:
        """What the meter said so far."""
        with self._lock:
            return MeterTrace(self._info, tuple(self._times), tuple(self._values), self._problem)


def read_into(log: TraceLog, meter: Meter, clock: Callable[[], float]) -> None:
    """Read once; the time of the reading is the middle of the call. A meter that fails ends its trace, and nothing else."""
    before = clock()
    try:
        reading = meter.read()
        log.add(reading, (before + clock()) / 2)
    except MeterError as error:
        log.fail(f"{_of_it(str(error), meter.info.name)} ({before - log.origin:.1f} s after the start)")


class Sampler:
    """Reads meters from start to stop, and closes them. A context manager.

    Args:
        origin: time of the clock that counts as zero in the traces.
        clock: seconds, monotonic.
    """

    def __init__(self, meters: Sequence[Meter], origin: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._loops = [_Loop(meter, origin, clock) for meter in meters]

    def start(self) -> None:
        """Begin to read; returns when every meter was read once, or is too slow to wait for."""
        try:
            for loop in self._loops:
                loop.thread.start()
            _wait_for([loop.first for loop in self._loops], _FIRST_READING_S)
        except BaseException:  # Ctrl-C while waiting must leave no thread either
            self.stop()
            raise

    def read_now(self) -> None:
        """Have every meter read once more, so that the traces reach up to now."""
        news = [loop.ask() for loop in self._loops if loop.thread.is_alive()]
        _wait_for(news, _FIRST_READING_S)

    def mark(self) -> None:
        """Have the fast meters read now, at the edge of a short window, which their own periods would only bracket."""
        news = [loop.ask() for loop in self._loops if loop.is_fast and loop.thread.is_alive()]
        _wait_for(news, _EDGE_READING_S)

    def stop(self) -> None:
        """Read every meter a last time and end; a meter that does not answer in time is left behind. Twice is allowed."""
        for loop in self._loops:
            loop.ask(last=True)
        deadline = time.monotonic() + _LAST_READING_S
        for loop in self._loops:
            if loop.thread.ident is not None:
                loop.thread.join(max(0.0, deadline - time.monotonic()))
            if loop.thread.is_alive():
                loop.log.fail("it did not answer any more when the measurement ended")

    def traces(self) -> tuple[MeterTrace, ...]:
        """What the meters said so far, in their order."""
        return tuple(loop.log.trace() for loop in self._loops)

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


class _Loop:
    """One meter and the thread that reads it."""

    def __init__(self, meter: Meter, origin: float, clock: Callable[[], float]) -> None:
        self._meter = meter
        self._clock = clock
        self._period_s = max(meter.info.period_s, MIN_PERIOD_S)
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self.log = TraceLog(meter, origin)
        self.first = threading.Event()
        # a daemon, so that a meter that never answers cannot keep the process alive
        self.thread = threading.Thread(target=self._run, name=f"meter {meter.info.name}", daemon=True)

    @property
    def is_fast(self) -> bool:
        """Whether a new value is there whenever it is read."""
        return self._meter.info.period_s < MIN_PERIOD_S

    def ask(self, last: bool = False) -> threading.Event:
        """Read now, and if `last`, end; the event is set when that is done."""
        request = _Request(threading.Event(), last)
        self._requests.put(request)
        return request.done

    def _run(self) -> None:
        try:
            self._read_until_asked_to_end()
        finally:
            self._meter.close()
            self.first.set()
            while not self._requests.empty():
                self._requests.get().done.set()

    def _read_until_asked_to_end(self) -> None:
        request = _Request(self.first, False)
        due = time.monotonic()
        while True:
            read_into(self.log, self._meter, self._clock)
            request.done.set()
            if request.last or self.log.has_failed:
                return
            due = max(due + self._period_s, time.monotonic())  # readings that were missed are not made up for
            try:
                request = self._requests.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                request = _Request(threading.Event(), False)


@dataclass(frozen=True)
class _Request:
    done: threading.Event
    last: bool


def _of_it(problem: str, name: str) -> str:
    """The problem in words that follow the meter's name."""
    return f"it{problem.removeprefix(name)}" if problem.startswith(f"{name} ") else problem.removeprefix(f"{name}: ")


def _watts(value: float) -> float:
    if not (math.isfinite(value) and 0 <= value <= MAX_W):
        raise MeterError(f"it shows {value:.10g} W, which no machine takes")
    return value


def _wait_for(events: Sequence[threading.Event], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for event in events:
        event.wait(max(0.0, deadline - time.monotonic()))
