"""Models open beside each other, close, and leave nothing behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psutil
import pytest
from conformance.cases import Case, tiny_model
from conformance.sequences import chunk, distance, prompt

from edgelm.backends.base import Backend
from edgelm.errors import ClosedError

New = Callable[[], int]
_WIDE_VOCAB = 16384
_LEAK_BYTES = 3_000_000
"""Per opening; the embedding and the output layer of so wide a model take 4 MB each."""


def test_two_models_at_once(backend: Backend, new: New, case: Case, tmp_path: Path) -> None:
    other = case.open(tiny_model(tmp_path, case, seed=1))
    try:
        tokens, sequence = prompt(15), new()
        wanted = other.forward([chunk(1, *tokens)])
        assert distance(backend.forward([chunk(new(), *tokens)]), wanted) > 0.1
        backend.forward([chunk(sequence, *tokens[:-3])])
        other.forward([chunk(2, *tokens[:-3])])
        for token in tokens[-3:]:  # turn by turn
            mine, theirs = backend.forward([chunk(sequence, token)]), other.forward([chunk(2, token)])
        assert distance(theirs, wanted) < case.own_error
        assert distance(mine, backend.forward([chunk(new(), *tokens)])) < case.own_error
    finally:
        other.close()


def test_the_same_model_twice(backend: Backend, new: New, case: Case, model: Path) -> None:
    twin = case.open(model)
    wanted = twin.forward([chunk(1, 5, 6)])
    sequence = new()
    backend.forward([chunk(sequence, 5)])
    twin.close()
    assert distance(backend.forward([chunk(sequence, 6)]), wanted) < case.own_error


def test_closed_means_closed(case: Case, model: Path) -> None:
    backend = case.open(model)
    backend.forward([chunk(1, 5)])
    backend.close()
    backend.close()
    calls: list[Callable[[], object]] = [
        lambda: backend.forward([chunk(1, 5)]),
        lambda: backend.hidden([chunk(1, 5)]),
        lambda: backend.truncate(1, 0),
        lambda: backend.share(1, 2, 1),
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()
    assert backend.info.n_ctx > 0


def test_closing_waits_for_the_computation(case: Case, model: Path) -> None:
    backend = case.open(model)
    ends: list[object] = []
    begun = Event()

    def decode() -> None:
        try:
            for i in range(1_000_000):
                backend.forward([chunk(i, *prompt(20))])
                begun.set()
                backend.free(i)
        except ClosedError as error:
            ends.append(error)

    thread = Thread(target=decode)
    thread.start()
    begun.wait(60)
    backend.close()
    thread.join(60)
    assert len(ends) == 1


def test_reopening_leaves_nothing_behind(case: Case, tmp_path: Path) -> None:
    if (reason := case.reason()) is not None:
        pytest.skip(reason)
    model = tiny_model(tmp_path, case, n_vocab=_WIDE_VOCAB)
    wanted: list[np.ndarray] = []

    def use() -> None:
        backend = case.open(model)
        wanted.append(backend.forward([chunk(1, *prompt(20)), chunk(2, *prompt(5, seed=1))]))
        backend.close()

    use()
    use()  # what is kept for the process (libraries, compiled kernels) is there now
    process, n = psutil.Process(), 6
    n_threads = process.num_threads()

    def growth() -> int:
        gc.collect()
        before = process.memory_info().rss
        for _ in range(n):
            use()
        gc.collect()
        return process.memory_info().rss - before

    # what leaks does so every time; an allocator that keeps memory for later does not
    assert growth() < n * _LEAK_BYTES or growth() < n * _LEAK_BYTES
    assert process.num_threads() <= n_threads
    for rows in wanted[1:]:
        assert distance(rows, wanted[0]) < case.own_error
