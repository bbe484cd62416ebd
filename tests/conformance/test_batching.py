"""Several sequences in one call give what they give one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from conformance.cases import Case
from conformance.sequences import chunk, distance, prompt

from edgelm.backends.base import Backend, Outputs

New = Callable[[], int]


def alone(backend: Backend, new: New, tokens: list[int]) -> np.ndarray:
    """The last token's logits of a sequence that has the backend for itself."""
    sequence = new()
    row = backend.forward([chunk(sequence, *tokens)])
    backend.free(sequence)
    return row


def test_unequal_prompts(backend: Backend, new: New, case: Case) -> None:
    prompts = [prompt(n, seed=n) for n in (1, 33, 7, 20)]
    wanted = np.concatenate([alone(backend, new, tokens) for tokens in prompts])
    rows = backend.forward([chunk(new(), *tokens) for tokens in prompts])
    assert distance(rows, wanted) < case.own_error


def test_unequal_sequences_decode_together(backend: Backend, new: New, case: Case) -> None:
    prompts = [prompt(n, seed=n) for n in (2, 40, 1, 17, 9)]
    sequences = [new() for _ in prompts]
    for sequence, tokens in zip(sequences, prompts, strict=True):
        backend.forward([chunk(sequence, *tokens, outputs=Outputs.NONE)])
    for step in range(4):
        rows = backend.forward([chunk(sequence, 60 + step) for sequence in sequences])
        steps = [60 + i for i in range(step + 1)]
        wanted = np.concatenate([alone(backend, new, [*tokens, *steps]) for tokens in prompts])
        assert distance(rows, wanted) < case.own_error, step


def test_prompts_and_single_tokens_mix(backend: Backend, new: New, case: Case) -> None:
    old, older = new(), new()
    backend.forward([chunk(old, *prompt(13)), chunk(older, *prompt(5, seed=1))])
    fresh = prompt(19, seed=2)
    rows = backend.forward([chunk(old, 70), chunk(new(), *fresh, outputs=Outputs.ALL), chunk(older, 71, 72, outputs=Outputs.ALL)])
    assert len(rows) == 1 + 19 + 2
    for row, tokens in ((0, [*prompt(13), 70]), (19, fresh), (20, [*prompt(5, seed=1), 71]), (21, [*prompt(5, seed=1), 71, 72])):
        assert distance(rows[row : row + 1], alone(backend, new, tokens)) < case.own_error, row


def test_sequences_leave_and_join(backend: Backend, new: New, case: Case) -> None:
    sequences = [new() for _ in range(4)]
    texts = {sequence: prompt(3 + i, seed=i) for i, sequence in enumerate(sequences)}
    backend.forward([chunk(sequence, *tokens) for sequence, tokens in texts.items()])
    for leaving, token in ((sequences[1], 80), (sequences[0], 81), (sequences[2], 82)):
        backend.free(leaving)
        del texts[leaving]
        joining = new()
        texts[joining] = []
        rows = backend.forward([chunk(sequence, token) for sequence in texts])
        for i, tokens in enumerate(texts.values()):
            tokens.append(token)
            assert distance(rows[i : i + 1], alone(backend, new, tokens)) < case.own_error


def test_those_who_wait_are_not_disturbed(backend: Backend, new: New, case: Case) -> None:
    waiting, first, last = new(), new(), new()
    backend.forward([chunk(first, 5, 6)])
    backend.forward([chunk(waiting, *prompt(11))])
    backend.forward([chunk(last, 7)])
    for token in (90, 91):  # the one between them computes nothing
        backend.forward([chunk(first, token), chunk(last, token)])
    assert backend.length(waiting) == 11
    assert distance(backend.forward([chunk(waiting, 8)]), alone(backend, new, [*prompt(11), 8])) < case.own_error


def test_many_sequences(backend: Backend, new: New, case: Case) -> None:
    sequences = [new() for _ in range(13)]
    backend.forward([chunk(sequence, 5 + i) for i, sequence in enumerate(sequences)])
    rows = backend.forward([chunk(sequence, 9) for sequence in reversed(sequences)])
    for i in (0, 6, 12):
        assert distance(rows[12 - i : 13 - i], alone(backend, new, [5 + i, 9])) < case.own_error
