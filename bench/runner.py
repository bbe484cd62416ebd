"""What is timed: an engine with one sequence. edgelm's engines and other programs have the same calls, so the same code times all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import Backend, Chunk, Outputs

_SEQUENCE = 0


class Runner(Protocol):
    """One engine with one model and one sequence."""

    @property
    def n_vocab(self) -> int: ...

    def hold(self, tokens: Sequence[int]) -> None:
        """Make the context hold exactly these tokens; cheap where it begins with them already."""
        ...

    def prefill(self, tokens: Sequence[int]) -> int:
        """Append tokens to the context; the greedy token that follows, known when this returns."""
        ...

    def decode(self, token: int, n: int) -> Iterator[int]:
        """Append `token`, then each token found; n greedy tokens, each given as soon as it is known."""
        ...

    def close(self) -> None: ...


class BackendRunner:
    """A Runner on an edgelm engine, called directly: no text, no sampling, the same numpy argmax as for the peers."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._held: tuple[int, ...] = ()

    @property
    def n_vocab(self) -> int:
        return self._backend.info.n_vocab

    def hold(self, tokens: Sequence[int]) -> None:
        wanted = tuple(tokens)
        if wanted and wanted == self._held and "truncate" in self._backend.info.abilities:
            self._backend.truncate(_SEQUENCE, len(wanted))
            return
        self._backend.free(_SEQUENCE)
        if wanted:
            self.prefill(wanted)
        self._held = wanted

    def prefill(self, tokens: Sequence[int]) -> int:
        return int(self._backend.forward([Chunk(_SEQUENCE, np.array(tokens, np.int32))])[0].argmax())

    def decode(self, token: int, n: int) -> Iterator[int]:
        for _ in range(n):
            token = int(self._backend.forward([Chunk(_SEQUENCE, np.array([token], np.int32))])[0].argmax())
            yield token

    def logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Logits after each token of an empty context, float32 [n, n_vocab]."""
        self.hold(())
        return self._backend.forward([Chunk(_SEQUENCE, tokens, Outputs.ALL)])

    def close(self) -> None:
        self._backend.close()
