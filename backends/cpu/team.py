"""The thread team: plain Python threads that stay inside compiled code between jobs."""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.cpu.kernel_cache import Kernel, KernelCache
from edgelm.backends.cpu.records import CREW, TEAM, TEAM_SLOTS
from edgelm.errors import BackendUnavailableError

# How many times an idle thread looks for the next job before it sleeps: some milliseconds, longer than sampling a token takes.
_PATIENCE = 100_000
_CALL, _LATE = TEAM.call // 8, TEAM.late // 8
TEAM_KERNELS = ("run", "serve")


@dataclass
class _Shared:
    """What the threads hold on to; it must not refer to the team, or the team could never be collected."""

    record: NDArray[np.int64]
    wake: threading.Condition
    coming: int = 0  # the call that is about to be made, for those asleep
    closing: bool = False


class ThreadTeam:
    """n_threads - 1 threads besides the caller's.

    `run` is called by one thread at a time. An idle member spins for a bounded while, because the next token usually
    comes at once, and then sleeps on a condition.
    """

    def __init__(self, n_threads: int, kernels: KernelCache) -> None:
        kernels.load(TEAM_KERNELS)
        self.n_threads = n_threads
        self._process = os.getpid()
        self._run, serve = (kernels.function(name) for name in TEAM_KERNELS)
        self._shared = _Shared(np.zeros(TEAM_SLOTS, np.int64), threading.Condition())
        self._threads = [
            threading.Thread(target=_member, args=(self._shared, serve, number), name=f"edgelm-{number}", daemon=True)
            for number in range(1, n_threads)
        ]
        for thread in self._threads:
            thread.start()
        self._finalizer = weakref.finalize(self, _dismiss, self._shared)

    def run(self, tape: NDArray[np.int64], n_ops: int, job: NDArray[np.int64], crew: int) -> int:
        """Run the first n_ops operations of the tape, int64 [n, SLOTS], on `crew` threads; returns when all are done.

        The result is how many arrivals at barriers were so late that others gave up their core meanwhile.

        Raises:
            BackendUnavailableError: this process was forked from the one that made the team.
        """
        if os.getpid() != self._process:  # threads do not survive a fork; waiting for them would last for ever
            raise BackendUnavailableError("the model was opened before this process was forked off; open it anew in this process")
        record = self._shared.record
        late = int(record[_LATE])
        record[TEAM.tape // 8], record[TEAM.n_ops // 8], record[TEAM.job // 8] = tape.ctypes.data, n_ops, job.ctypes.data
        call = (int(record[_CALL]) // CREW + 1) * CREW + crew
        try:
            if crew > 1:
                self._wake_for(call)
            self._run(record.ctypes.data, call, 0, crew)
        except BaseException:  # an interrupt before the call was made
            self._wake_for(int(record[_CALL]))
            raise
        return int(record[_LATE]) - late

    def _wake_for(self, call: int) -> None:
        with self._shared.wake:
            self._shared.coming = call
            self._shared.wake.notify_all()

    def close(self) -> None:
        """End the threads and wait for them."""
        self._finalizer()
        for thread in self._threads:
            thread.join()


def _member(shared: _Shared, serve: Kernel, number: int) -> None:
    """Life of one thread: take part in jobs, sleep when there are none for it, end when the team is dismissed."""
    seen = 0
    while True:
        seen = serve(shared.record.ctypes.data, seen, number, _PATIENCE)
        with shared.wake:
            shared.wake.wait_for(lambda: shared.closing or (shared.coming != seen and number < shared.coming % CREW))  # noqa: B023
            if shared.closing:
                return


def _dismiss(shared: _Shared) -> None:
    with shared.wake:
        shared.closing = True
        shared.wake.notify_all()
