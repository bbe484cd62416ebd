"""Several threads may use one backend at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from conformance.cases import Case
from conformance.sequences import chunk, distance, prompt

from edgelm.backends.base import Backend

New = Callable[[], int]


def test_every_thread_gets_its_own_answers(backend: Backend, new: New, case: Case) -> None:
    def decode(sequence: int, tokens: list[int]) -> np.ndarray:
        backend.forward([chunk(sequence, *tokens[:-6])])
        return np.concatenate([backend.forward([chunk(sequence, token)]) for token in tokens[-6:]])

    prompts = [prompt(8 + 3 * i, seed=i) for i in range(6)]
    wanted = [decode(new(), tokens) for tokens in prompts]
    sequences = [new() for _ in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        rows = list(pool.map(decode, sequences, prompts))
    for actual, expected in zip(rows, wanted, strict=True):
        assert distance(actual, expected) < case.own_error


def test_sequences_come_and_go_meanwhile(backend: Backend, new: New, case: Case) -> None:
    def churn(seed: int) -> np.ndarray:
        rows = []
        for i in range(5):
            sequence, twin = new(), new()
            backend.forward([chunk(sequence, *prompt(6, seed=seed))])
            if "share" in backend.info.abilities:
                backend.share(sequence, twin, 4)
            backend.truncate(sequence, 3)
            rows.append(backend.forward([chunk(sequence, 7 + i)])[0])
            backend.free(sequence)
            backend.free(twin)
        return np.stack(rows)

    wanted = [churn(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for rows, expected in zip(pool.map(churn, range(4)), wanted, strict=True):
            assert distance(rows, expected) < case.own_error
