"""Rows of a matrix shared out among threads: quantizing a row needs no other row."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType


class RowThreads:
    """Threads that run compiled kernels on ranges of rows; the kernels must not hold the interpreter's lock. A context manager.

    Args:
        n_threads: 1 or more; 1 runs everything in the caller's thread.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._pool = ThreadPoolExecutor(n_threads) if n_threads > 1 else None

    def __enter__(self) -> RowThreads:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def run(self, kernel: Callable[[slice], None], n_rows: int) -> None:
        """Call kernel(rows) for ranges that cover all rows; what it raises is raised here."""
        if self._pool is None or n_rows < self.n_threads:
            kernel(slice(0, n_rows))
            return
        bounds = [n_rows * i // self.n_threads for i in range(self.n_threads + 1)]
        for done in [self._pool.submit(kernel, slice(*bound)) for bound in itertools.pairwise(bounds)]:
            done.result()
