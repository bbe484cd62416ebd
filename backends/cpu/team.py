"""The thread team: plain Python threads that stay inside compiled code between jobs."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.cpu.kernel_cache import Kernel, KernelCache
from edgelm.backends.cpu.records import TEAM, TEAM_SLOTS

# How long an idle thread spins for the next job before it sleeps, in thousands of spins: some milliseconds, longer than
# sampling a token takes.
_PATIENCE = 100


@dataclass
class _Shared:
    """What the threads hold on to; it must not refer to the team, or the team could never be collected."""

    record: NDArray[np.int64]
    wake: threading.Condition
    closing: bool = False


class ThreadTeam:
    """n_threads - 1 threads besides the caller's.

    `run` is called by one thread at a time. An idle member spins for a bounded while, because the next token usually
    comes at once, and then sleeps on a condition.
    """

    def __init__(self, n_threads: int, kernels: KernelCache) -> None:
        kernels.load(["run", "serve"])
        self.n_threads = n_threads
        self._run = kernels.function("run")
        self._shared = _Shared(np.zeros(TEAM_SLOTS, np.int64), threading.Condition())
        serve = kernels.function("serve")
        self._threads = [
            threading.Thread(target=_member, args=(self._shared, serve, number, n_threads), name=f"edgelm-{number}", daemon=True)
            for number in range(1, n_threads)
        ]
        for thread in self._threads:
            thread.start()
        self._finalizer = weakref.finalize(self, _dismiss, self._shared)

    def run(self, tape: NDArray[np.int64], n_ops: int, job: NDArray[np.int64]) -> None:
        """Run the first n_ops operations of the tape, int64 [n, SLOTS], on all threads; returns when all are done."""
        record = self._shared.record
        record[TEAM.tape // 8], record[TEAM.n_ops // 8], record[TEAM.job // 8] = tape.ctypes.data, n_ops, job.ctypes.data
        if self._threads:
            with self._shared.wake:
                record[TEAM.generation // 8] += 1
                self._shared.wake.notify_all()
        self._run(record.ctypes.data, 0, 0, self.n_threads)

    def close(self) -> None:
        """End the threads and wait for them."""
        self._finalizer()
        for thread in self._threads:
            thread.join()


def _member(shared: _Shared, serve: Kernel, number: int, n_threads: int) -> None:
    """Life of one thread: serve jobs, sleep when there are none, end when the team is dismissed."""
    address, generation, seen = shared.record.ctypes.data, TEAM.generation // 8, 0
    while True:
        seen = serve(address, seen, number, n_threads | _PATIENCE << 40)
        with shared.wake:
            shared.wake.wait_for(lambda: shared.closing or shared.record[generation] > seen)  # noqa: B023
            if shared.closing:
                return


def _dismiss(shared: _Shared) -> None:
    with shared.wake:
        shared.closing = True
        shared.wake.notify_all()
