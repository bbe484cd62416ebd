"""A sequence may be rolled back, and goes on as if the rest had never been."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conformance.cases import Case
from conformance.sequences import chunk, distance, prompt

from edgelm.backends.base import Backend
from edgelm.errors import InvalidRequestError

New = Callable[[], int]


@pytest.fixture(autouse=True)
def able(backend: Backend) -> None:
    if "truncate" not in backend.info.abilities:
        pytest.skip("the backend declares that it cannot truncate")


@pytest.mark.parametrize("n_kept", [0, 1, 15, 16, 24, 25])
def test_it_goes_on_from_there(backend: Backend, new: New, case: Case, n_kept: int) -> None:
    sequence, tokens = new(), prompt(25)
    backend.forward([chunk(sequence, *tokens)])
    backend.truncate(sequence, n_kept)
    assert backend.length(sequence) == n_kept
    wanted = backend.forward([chunk(new(), *tokens[:n_kept], 8, 9)])
    assert distance(backend.forward([chunk(sequence, 8, 9)]), wanted) < case.own_error


def test_one_sequence_does_not_touch_another(backend: Backend, new: New, case: Case) -> None:
    sequence, other, tokens = new(), new(), prompt(10)
    backend.forward([chunk(sequence, *tokens)])
    if "share" in backend.info.abilities:
        backend.share(sequence, other, 10)
    else:
        backend.forward([chunk(other, *tokens)])
    backend.truncate(sequence, 4)
    backend.forward([chunk(sequence, 40, 41, 42)])
    assert distance(backend.forward([chunk(other, 7)]), backend.forward([chunk(new(), *tokens, 7)])) < case.own_error


def test_what_makes_no_sense_changes_nothing(backend: Backend, new: New) -> None:
    sequence = new()
    backend.forward([chunk(sequence, 5, 6)])
    for n_tokens in (3, -1):
        with pytest.raises(InvalidRequestError):
            backend.truncate(sequence, n_tokens)
    assert backend.length(sequence) == 2
    backend.truncate(new(), 0)


def test_freed_sequences_begin_anew(backend: Backend, new: New, case: Case) -> None:
    sequence = new()
    backend.forward([chunk(sequence, 5, 6)])
    backend.free(sequence)
    backend.free(sequence)
    assert backend.length(sequence) == 0
    assert distance(backend.forward([chunk(sequence, 7)]), backend.forward([chunk(new(), 7)])) < case.own_error
