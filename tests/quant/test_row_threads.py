"""Pieces of work, and how many threads compute at a time."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from edgelm.errors import InvalidRequestError
from edgelm.quant.row_threads import RowThreads


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("n_rows", [0, 1, 4, 5, 23])
def test_the_pieces_cover_all_rows_and_do_not_depend_on_the_threads(n_threads: int, n_rows: int) -> None:
    pieces: list[slice] = []
    with RowThreads(n_threads) as threads:
        threads.run(pieces.append, n_rows, 4)
    assert sorted(piece.start for piece in pieces) == list(range(0, n_rows, 4))
    assert all(piece.stop == min(piece.start + 4, n_rows) for piece in pieces)


def test_one_thread_is_the_caller_s() -> None:
    seen = set()
    with RowThreads(1) as threads:
        threads.run(lambda _: seen.add(threading.get_ident()), 9, 2)
    assert seen == {threading.get_ident()}


@pytest.mark.parametrize("n_threads", [1, 2])
def test_blas_keeps_to_the_thread_that_calls_it(n_threads: int) -> None:
    before = blas_threads()
    with RowThreads(n_threads):
        assert set(blas_threads()) == {1}
    assert blas_threads() == before


def test_threads_work_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=10)
    with RowThreads(2) as threads:
        threads.run(lambda _: both.wait() and None, 2, 1)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_an_error_comes_out_and_stops_what_has_not_begun(n_threads: int) -> None:
    done = []

    def work(rows: slice) -> None:
        if rows.start == 0:
            raise ZeroDivisionError
        time.sleep(0.002)
        done.append(rows.start)

    with RowThreads(n_threads) as threads:
        with pytest.raises(ZeroDivisionError):
            threads.run(work, 1000, 1)
        threads.run(lambda _: None, 3, 1)  # still of use
    assert len(done) < 900


@pytest.mark.parametrize("n_threads", [0, -1])
def test_no_threads_at_all_are_refused(n_threads: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"n_threads is {n_threads}; give 1 or more"):
        RowThreads(n_threads)


def test_products_are_the_same_whatever_the_threads() -> None:
    a, b = (np.random.default_rng(seed).standard_normal((257, 300)).astype(np.float32) for seed in (0, 1))
    results = []
    for n_threads in (1, 2, 3):
        product = np.empty((257, 257), np.float32)

        def work(rows: slice, out: object = product) -> None:
            out[rows] = a[rows] @ b.T  # type: ignore[index]

        with RowThreads(n_threads) as threads:
            threads.run(work, 257, 50)
        results.append(product)
    assert all(np.array_equal(results[0], each) for each in results)
