"""Logits and hidden states: near the reference, of the right shape, and the caller's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conformance.cases import Case
from conformance.sequences import chunk, distance, prompt

from edgelm.backends.base import Backend, Outputs
from edgelm.backends.reference import ReferenceModel

New = Callable[[], int]


def test_a_prompts_logits_are_the_references(backend: Backend, new: New, reference: ReferenceModel, case: Case) -> None:
    tokens = prompt(21)
    rows = backend.forward([chunk(new(), *tokens, outputs=Outputs.ALL)])
    assert distance(rows, reference.logits(np.array(tokens, np.int32))) < (case.reference_error or 0)


def test_single_tokens_logits_are_the_references(backend: Backend, new: New, reference: ReferenceModel, case: Case) -> None:
    tokens, sequence = prompt(9), new()
    rows = [backend.forward([chunk(sequence, token)])[0] for token in tokens]
    assert distance(np.stack(rows), reference.logits(np.array(tokens, np.int32))) < (case.reference_error or 0)


def test_hidden_states_are_the_references(backend: Backend, new: New, reference: ReferenceModel, case: Case) -> None:
    if "hidden" not in backend.info.abilities:
        pytest.skip("the backend declares no hidden states")
    tokens, sequence = prompt(7), new()
    rows = backend.hidden([chunk(sequence, *tokens, outputs=Outputs.ALL), chunk(new(), *tokens[:3])])
    wanted = reference.hidden(np.array(tokens, np.int32))
    assert distance(rows, np.concatenate([wanted, wanted[2:3]])) < (case.reference_error or 0)
    assert (rows.dtype, backend.length(sequence)) == (np.float32, 7)
    after = backend.forward([chunk(sequence, 5)])
    assert distance(after, reference.logits(np.array([*tokens, 5], np.int32))[-1:]) < (case.reference_error or 0)


def test_a_sequence_goes_on_as_if_given_at_once(backend: Backend, new: New, case: Case) -> None:
    tokens, other = prompt(30), new()
    whole = backend.forward([chunk(new(), *tokens)])
    for part in (tokens[:1], tokens[1:18], tokens[18:19], tokens[19:]):
        last = backend.forward([chunk(other, *part)])
    assert distance(last, whole) < case.own_error


def test_rows_come_in_the_order_of_the_batch(backend: Backend, new: New, case: Case) -> None:
    first, second, third = new(), new(), new()
    rows = backend.forward([chunk(first, 5, 6, 7, outputs=Outputs.ALL), chunk(second, 8, outputs=Outputs.NONE), chunk(third, 5, 6)])
    assert (rows.shape, rows.dtype) == ((4, backend.info.n_vocab), np.float32)
    assert distance(rows[1:2], rows[3:]) < case.own_error
    assert distance(rows[:1], rows[1:2]) > case.own_error
    assert [backend.length(sequence) for sequence in (first, second, third, new())] == [3, 1, 2, 0]


def test_only_nones_give_no_rows(backend: Backend, new: New) -> None:
    assert backend.forward([chunk(new(), 5, outputs=Outputs.NONE), chunk(new(), 5, 6, outputs=Outputs.NONE)]).shape == (
        0,
        backend.info.n_vocab,
    )
    assert backend.forward([]).shape == (0, backend.info.n_vocab)


def test_logits_are_the_callers_own(backend: Backend, new: New) -> None:
    sequence = new()
    first = backend.forward([chunk(sequence, 5)])
    kept = first.copy()
    backend.forward([chunk(sequence, 6)])
    backend.forward([chunk(new(), *prompt(12), outputs=Outputs.ALL)])
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # and may be changed
