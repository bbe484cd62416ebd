"""Beginnings that were computed already: sequences of the backend that are kept after their generation has ended."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import Backend

Tokens = NDArray[np.int32]


def common_prefix(a: Tokens, b: Tokens) -> int:
    """How many tokens both begin with."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


class PrefixCache:
    """Sequences by how long ago they were of use; the oldest are freed when they take too much memory.

    Args:
        n_bytes: of keys and values at the most; 0 keeps nothing. Pages that several sequences share count for each.
    """

    def __init__(self, backend: Backend, n_bytes: int) -> None:
        self._backend = backend
        self._n_bytes = n_bytes if {"share", "truncate"} <= backend.info.abilities else 0
        self._kept: OrderedDict[int, Tokens] = OrderedDict()
        self._n_tokens = 0  # counted, for other threads ask while sequences come and go

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def is_used(self) -> bool:
        """Whether the backend can share sequences, and memory was given for it."""
        return self._n_bytes > 0

    @property
    def n_tokens(self) -> int:
        """Tokens that are kept."""
        return self._n_tokens

    def find(self, tokens: Tokens) -> tuple[int | None, int]:
        """The sequence that begins like these tokens for longest, and for how many tokens; (None, 0) where none does."""
        best, n_best = None, 0
        for sequence, kept in self._kept.items():
            n = common_prefix(kept, tokens)
            if n > n_best:
                best, n_best = sequence, n
        if best is not None:
            self._kept.move_to_end(best)
        return best, n_best

    def keep(self, sequence: int, tokens: Sequence[int]) -> None:
        """Take over a sequence that holds these tokens. One that takes too much memory by itself is freed at once."""
        array = np.asarray(tokens, np.int32)
        bytes_per_token = self._backend.info.kv_bytes_per_token
        if not self._n_bytes or len(array) * bytes_per_token > self._n_bytes:
            self._backend.free(sequence)
            return
        for other, kept in list(self._kept.items()):
            if common_prefix(kept, array) == len(kept):  # the new one serves for all that it did
                self._free(other)
        self._kept[sequence] = array
        self._n_tokens += len(array)
        while self._n_tokens * bytes_per_token > self._n_bytes:
            self.free_oldest()

    def free_oldest(self) -> bool:
        """Make room; whether there was anything to free."""
        if not self._kept:
            return False
        self._free(next(iter(self._kept)))
        return True

    def clear(self) -> None:
        while self.free_oldest():
            pass

    def _free(self, sequence: int) -> None:
        self._n_tokens -= len(self._kept.pop(sequence))
        self._backend.free(sequence)
