"""A sequence may begin with another's beginning, and both go their own ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conformance.cases import N_CTX, Case
from conformance.sequences import chunk, distance, prompt

from edgelm.backends.base import Backend
from edgelm.errors import InvalidRequestError

New = Callable[[], int]


@pytest.fixture(autouse=True)
def able(backend: Backend) -> None:
    if "share" not in backend.info.abilities:
        pytest.skip("the backend declares that it cannot share")


@pytest.mark.parametrize("n_shared", [1, 16, 29, 30])
def test_both_go_on_independently(backend: Backend, new: New, case: Case, n_shared: int) -> None:
    source, target, tokens = new(), new(), prompt(30)
    backend.forward([chunk(source, *tokens)])
    backend.share(source, target, n_shared)
    assert (backend.length(source), backend.length(target)) == (30, n_shared)
    for sequence, history, token in ((target, tokens[:n_shared], 9), (source, tokens, 9), (target, [*tokens[:n_shared], 9], 11)):
        wanted = backend.forward([chunk(new(), *history, token)])
        assert distance(backend.forward([chunk(sequence, token)]), wanted) < case.own_error


def test_the_source_may_leave(backend: Backend, new: New, case: Case) -> None:
    source, target, tokens = new(), new(), prompt(20)
    backend.forward([chunk(source, *tokens)])
    backend.share(source, target, 18)
    backend.free(source)
    backend.forward([chunk(new(), *prompt(20, seed=1))])  # may take the place that became free
    assert distance(backend.forward([chunk(target, 7)]), backend.forward([chunk(new(), *tokens[:18], 7)])) < case.own_error


def test_rolling_back_one_leaves_the_other(backend: Backend, new: New, case: Case) -> None:
    if "truncate" not in backend.info.abilities:
        pytest.skip("the backend declares that it cannot truncate")
    source, target, tokens = new(), new(), prompt(N_CTX)
    backend.forward([chunk(source, *tokens)])
    backend.share(source, target, N_CTX)
    backend.truncate(target, 30)
    changed = backend.forward([chunk(target, 40, 41)])
    assert distance(changed, backend.forward([chunk(new(), *tokens[:30], 40, 41)])) < case.own_error
    backend.truncate(source, N_CTX - 1)
    assert distance(backend.forward([chunk(source, tokens[-1])]), backend.forward([chunk(new(), *tokens)])) < case.own_error


def test_several_share_one_beginning(backend: Backend, new: New, case: Case) -> None:
    source, tokens = new(), prompt(12)
    backend.forward([chunk(source, *tokens)])
    targets = [new() for _ in range(3)]
    for target in targets:
        backend.share(source, target, 12)
    rows = backend.forward([chunk(target, 30 + i) for i, target in enumerate(targets)])
    for i in range(3):
        assert distance(rows[i : i + 1], backend.forward([chunk(new(), *tokens, 30 + i)])) < case.own_error


def test_nothing_can_be_shared_too(backend: Backend, new: New, case: Case) -> None:
    source, target = new(), new()
    backend.forward([chunk(source, 5, 6)])
    backend.share(source, target, 0)
    assert backend.length(target) == 0
    assert distance(backend.forward([chunk(target, 7)]), backend.forward([chunk(new(), 7)])) < case.own_error


def test_what_makes_no_sense_changes_nothing(backend: Backend, new: New) -> None:
    source, taken = new(), new()
    backend.forward([chunk(source, 5, 6), chunk(taken, 7)])
    for target, n_tokens in ((new(), 3), (new(), -1), (taken, 1)):
        with pytest.raises(InvalidRequestError):
            backend.share(source, target, n_tokens)
    with pytest.raises(InvalidRequestError):
        backend.share(new(), new(), 1)
    assert (backend.length(source), backend.length(taken)) == (2, 1)
