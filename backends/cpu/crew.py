"""How many threads of the team take part in a decode step, on a machine that other processes use too."""

from __future__ import annotations

from collections import deque
from statistics import median

_TRIAL = 6  # steps that a size is tried for
_FASTER = 0.95  # of the former time per step: what a size must come below to be kept
_HOLD, _LONGEST_HOLD = 32, 1024  # steps between trials; doubled whenever a trial brings nothing


class CrewSize:
    """Chooses the number of threads by what was measured.

    When another process takes a thread's core, all others wait for that thread at the next barrier, milliseconds each time, and
    a decode step has hundreds of barriers: fewer threads can be several times faster. Late arrivals at barriers are the sign that
    a smaller crew is worth a trial; the time per step decides. A crew that was made smaller is tried larger again from time to time.
    """

    def __init__(self, n_threads: int) -> None:
        self.size = n_threads
        self._largest = n_threads
        self._steps: deque[tuple[float, bool]] = deque(maxlen=_TRIAL)
        self._former: tuple[int, float] | None = None  # size and time per step before the trial that is going on
        self._hold = _HOLD
        self._wait = 0

    def note(self, seconds: float, n_late: int) -> None:
        """Take note of a step with the present size: how long it took, and how many arrivals at barriers were late."""
        self._steps.append((seconds, n_late > 0))
        self._wait -= 1
        if len(self._steps) < _TRIAL:
            return
        if self._former is not None:
            self._end_trial(*self._former)
        elif self._wait <= 0:
            self._begin_trial()

    @property
    def _per_step(self) -> float:
        return median(seconds for seconds, _ in self._steps)

    def _begin_trial(self) -> None:
        is_disturbed = sum(late for _, late in self._steps) > _TRIAL // 2
        if is_disturbed and self.size > 1:
            size = self.size - 1
        elif self.size < self._largest:
            size = self.size + 1
        else:
            return
        self._former = self.size, self._per_step
        self.size = size
        self._steps.clear()

    def _end_trial(self, size: int, per_step: float) -> None:
        if self._per_step < _FASTER * per_step:
            self._hold = _HOLD
        else:
            self.size = size
            self._hold = min(2 * self._hold, _LONGEST_HOLD)
        self._former = None
        self._wait = self._hold
        self._steps.clear()
