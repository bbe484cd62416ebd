"""The context may be filled and not exceeded, and a batch that is refused changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conformance.cases import N_CTX, N_VOCAB, Case
from conformance.sequences import chunk, distance, prompt

from edgelm.backends.base import Backend, Chunk, Outputs
from edgelm.errors import ContextOverflowError, InvalidRequestError

New = Callable[[], int]


def test_it_may_be_filled_at_once(backend: Backend, new: New, case: Case) -> None:
    tokens, sequence, other = prompt(N_CTX), new(), new()
    whole = backend.forward([chunk(sequence, *tokens)])
    backend.forward([chunk(other, *tokens[:-1])])
    assert distance(backend.forward([chunk(other, tokens[-1])]), whole) < case.own_error
    assert backend.length(sequence) == backend.length(other) == backend.info.n_ctx == N_CTX


def test_a_full_sequence_keeps_the_others_going(backend: Backend, new: New, case: Case) -> None:
    before, full, after = new(), new(), new()
    backend.forward([chunk(before, 5), chunk(full, *prompt(N_CTX)), chunk(after, 6)])
    rows = backend.forward([chunk(before, 8), chunk(after, 9)])
    assert distance(rows, backend.forward([chunk(new(), 5, 8), chunk(new(), 6, 9)])) < case.own_error
    backend.truncate(full, N_CTX - 1)
    assert distance(backend.forward([chunk(full, prompt(N_CTX)[-1])]), backend.forward([chunk(new(), *prompt(N_CTX))])) < case.own_error


def test_overflow_says_how_much_and_appends_nothing(backend: Backend, new: New) -> None:
    full, other = new(), new()
    backend.forward([chunk(full, *prompt(N_CTX - 1))])
    with pytest.raises(ContextOverflowError) as caught:
        backend.forward([chunk(other, 6), chunk(full, 5, 6)])
    assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (N_CTX + 1, N_CTX)
    with pytest.raises(ContextOverflowError):
        backend.forward([chunk(other, *prompt(N_CTX + 1))])
    assert (backend.length(full), backend.length(other)) == (N_CTX - 1, 0)
    backend.forward([chunk(full, 5)])


WRONG: dict[str, Callable[[int], list[Chunk]]] = {
    "empty": lambda n: [chunk(n)],
    "too large": lambda n: [chunk(n, N_VOCAB)],
    "negative": lambda n: [chunk(n, 5, -1)],
    "twice": lambda n: [chunk(n, 5), chunk(n, 6)],
    "two dimensions": lambda n: [Chunk(n, np.zeros((1, 2), np.int32))],
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_senseless_batches_change_nothing(backend: Backend, new: New, wrong: Callable[[int], list[Chunk]]) -> None:
    first, other = new(), new()
    with pytest.raises(InvalidRequestError):
        backend.forward([chunk(first, 5), *wrong(other)])
    with pytest.raises(InvalidRequestError):
        backend.hidden([chunk(first, 5, outputs=Outputs.ALL), *wrong(other)])
    assert backend.length(first) == backend.length(other) == 0
