"""An edgelm engine behind the calls that the peers have, so that both are timed by the same code."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import Backend, Chunk, Outputs

_SEQUENCE = 0


class Runner(Protocol):
    """One engine with one model and one sequence."""

    @property
    def n_vocab(self) -> int: ...

    def clear(self) -> None:
        """Forget all tokens."""
        ...

    def prefill(self, tokens: Sequence[int]) -> float:
        """Seconds to compute the tokens in an empty context, up to the last one's logits."""
        ...

    def decode_greedy(self, token: int, n: int) -> tuple[list[int], float]:
        """n greedy tokens that follow the context's tokens and `token`, and the seconds they took."""
        ...

    def close(self) -> None: ...


class BackendRunner:
    """A Runner on an edgelm engine, called directly: no text, no sampling, the same numpy argmax as for the peer."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def n_vocab(self) -> int:
        return self._backend.info.n_vocab

    def clear(self) -> None:
        self._backend.free(_SEQUENCE)

    def prefill(self, tokens: Sequence[int]) -> float:
        self.clear()
        chunk = Chunk(_SEQUENCE, np.array(tokens, np.int32))
        start = time.perf_counter()
        self._backend.forward([chunk])
        return time.perf_counter() - start

    def decode_greedy(self, token: int, n: int) -> tuple[list[int], float]:
        ids = []
        start = time.perf_counter()
        for _ in range(n):
            logits = self._backend.forward([Chunk(_SEQUENCE, np.array([token], np.int32))])
            token = int(logits[0].argmax())
            ids.append(token)
        return ids, time.perf_counter() - start

    def logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Logits after each token of an empty context, float32 [n, n_vocab]."""
        self.clear()
        return self._backend.forward([Chunk(_SEQUENCE, tokens, Outputs.ALL)])

    def close(self) -> None:
        self._backend.close()
