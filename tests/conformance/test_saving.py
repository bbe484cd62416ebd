"""A sequence may be saved and begun again from what was saved, in this backend or another one with the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conformance.cases import N_CTX, Case
from conformance.sequences import chunk, distance, prompt

from edgelm.backends.base import Backend
from edgelm.errors import InvalidRequestError

New = Callable[[], int]


@pytest.fixture(autouse=True)
def able(backend: Backend) -> None:
    if "save" not in backend.info.abilities:
        with pytest.raises(InvalidRequestError):
            backend.save(0)
        pytest.skip("the backend declares that it cannot save")


@pytest.mark.parametrize("n", [1, 16, 17, N_CTX - 1])
def test_it_goes_on_where_it_was(backend: Backend, new: New, case: Case, n: int) -> None:
    source, target, tokens = new(), new(), prompt(n)
    backend.forward([chunk(source, *tokens)])
    state = backend.save(source)
    backend.free(source)
    backend.forward([chunk(new(), *prompt(n, seed=1))])  # may take the place that became free
    backend.restore(target, n, np.concatenate(state))
    assert backend.length(target) == n
    assert distance(backend.forward([chunk(target, 7)]), backend.forward([chunk(new(), *tokens, 7)])) < case.own_error


def test_another_process_may_go_on(backend: Backend, new: New, case: Case, model: Path) -> None:
    tokens = prompt(20)
    source = new()
    backend.forward([chunk(source, *tokens)])
    state = bytes(np.concatenate(backend.save(source)))
    other = case.open(model)
    try:
        other.restore(1, 20, np.frombuffer(state, np.uint8))
        assert distance(other.forward([chunk(1, 7)]), backend.forward([chunk(source, 7)])) < case.own_error
    finally:
        other.close()


def test_both_go_on_independently(backend: Backend, new: New, case: Case) -> None:
    source, target, tokens = new(), new(), prompt(20)
    backend.forward([chunk(source, *tokens)])
    backend.restore(target, 20, np.concatenate(backend.save(source)))
    backend.truncate(target, 10)
    assert distance(backend.forward([chunk(target, 7)]), backend.forward([chunk(new(), *tokens[:10], 7)])) < case.own_error
    assert distance(backend.forward([chunk(source, 9)]), backend.forward([chunk(new(), *tokens, 9)])) < case.own_error


def test_what_makes_no_sense_changes_nothing(backend: Backend, new: New) -> None:
    source, empty = new(), new()
    backend.forward([chunk(source, *prompt(20))])
    state = np.concatenate(backend.save(source))
    for target, n_tokens, given in (
        (source, 20, state),
        (empty, 20, state[:-1]),
        (empty, N_CTX + 1, state),
        (empty, 20, state[:0]),
        (empty, -1, state),
    ):
        with pytest.raises(InvalidRequestError):
            backend.restore(target, n_tokens, given)
    assert (backend.length(source), backend.length(empty)) == (20, 0)
