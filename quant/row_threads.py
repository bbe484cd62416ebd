"""Work on many rows (or windows, or other items that need nothing of each other) shared out among threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from threadpoolctl import ThreadpoolController, threadpool_limits

from edgelm.errors import InvalidRequestError


class RowThreads:
    """The threads of a computation. A context manager: while it is entered, BLAS computes in the thread that calls it, in all the process.

    So no more than n_threads ever compute; and the pieces that `run` makes do not depend on n_threads, so that neither do the results.

    Args:
        n_threads: 1 or more; 1 runs everything in the caller's thread.

    Raises:
        InvalidRequestError: n_threads is not positive.
    """

    def __init__(self, n_threads: int) -> None:
        if n_threads < 1:
            raise InvalidRequestError(f"n_threads is {n_threads}; give 1 or more")
        self.n_threads = n_threads
        self._pool = ThreadPoolExecutor(n_threads) if n_threads > 1 else None
        self._blas: threadpool_limits | None = None

    def __enter__(self) -> RowThreads:
        self._blas = ThreadpoolController().limit(limits=1, user_api="blas")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        if self._blas is not None:
            self._blas.restore_original_limits()

    def run(self, work: Callable[[slice], None], n_rows: int, n_at_once: int) -> None:
        """Call work(rows) for pieces of n_at_once rows, the last one shorter; what the first piece to fail raises is raised here.

        `work` must not call `run`. It computes in parallel as far as it does not hold the interpreter's lock, as BLAS, large numpy
        operations and compiled kernels do not.
        """
        pieces = [slice(start, min(start + n_at_once, n_rows)) for start in range(0, n_rows, n_at_once)]
        if self._pool is None or len(pieces) < 2:
            for piece in pieces:
                work(piece)
            return
        running = [self._pool.submit(work, piece) for piece in pieces]
        try:
            for piece_done in running:
                piece_done.result()
        finally:
            for piece_done in running:  # after an error or an interruption: what has not begun need not begin
                piece_done.cancel()
