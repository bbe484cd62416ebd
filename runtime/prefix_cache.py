"""Beginnings that were computed already: sequences of the backend that are kept after their generation has ended."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import numpy as np

from edgelm.backends.base import Backend
from edgelm.errors import InsufficientMemoryError, InvalidRequestError
from edgelm.runtime.common_prefix import Tokens, common_prefix
from edgelm.runtime.generation import new_sequence
from edgelm.runtime.prefix_store import PrefixStore

_WORTH_READING = 64  # tokens that are computed sooner than they are read
_CLOSING_S = 10.0  # for writing at the end


class PrefixCache:
    """Sequences by how long ago they were of use; the oldest are freed when they take too much memory.

    Args:
        n_bytes: of keys and values at the most; 0 keeps nothing. Pages that several sequences share count for each.
        store: where those go that have no place here any more, and all at the end.

    Raises:
        InvalidRequestError: the backend cannot save sequences for the store.
    """

    def __init__(self, backend: Backend, n_bytes: int, store: PrefixStore | None = None) -> None:
        if store is not None and not ({"share", "truncate", "save"} <= backend.info.abilities and n_bytes):
            raise InvalidRequestError(
                f"the disk cache needs a cache in memory and an engine that saves sequences, which {backend.info.backend} does not; "
                "leave the disk cache out, or choose the cpu backend"
            )
        self._backend = backend
        self._store = store
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
        if self._store is not None:
            file, n = self._store.find(tokens)
            if file is not None and n >= n_best + _WORTH_READING:
                read = self._read(file)
                best, n_best = (best, n_best) if read is None else (read, n)
        if best is not None:
            self._kept.move_to_end(best)
        return best, n_best

    def keep(self, sequence: int, tokens: Sequence[int] | Tokens) -> None:
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
            oldest, its_tokens = next(iter(self._kept.items()))
            if self._store is not None:
                self._store.write_soon(its_tokens, self._backend.save(oldest))
            self._free(oldest)

    def free_oldest(self) -> bool:
        """Make room at once, as memory is short; whether there was anything to free."""
        if not self._kept:
            return False
        self._free(next(iter(self._kept)))
        return True

    def clear(self) -> None:
        while self.free_oldest():
            pass

    def close(self) -> None:
        """Free all; what was of use last goes to the store first, as far as there is time."""
        end = monotonic() + _CLOSING_S
        for sequence, tokens in reversed(self._kept.items()):
            if self._store is not None and monotonic() < end:
                self._store.write(tokens, self._backend.save(sequence))
        self.clear()

    def _read(self, file: Path) -> int | None:
        """A beginning from the store as one that is kept here; None where it cannot be had."""
        assert self._store is not None
        read = self._store.read(file)
        if read is None or len(read[0]) * self._backend.info.kv_bytes_per_token > self._n_bytes:
            return None
        tokens, state = read
        sequence = new_sequence()
        try:
            self._backend.restore(sequence, len(tokens), state)
        except (InsufficientMemoryError, InvalidRequestError):
            return None
        self.keep(sequence, tokens)
        return sequence

    def _free(self, sequence: int) -> None:
        self._n_tokens -= len(self._kept.pop(sequence))
        self._backend.free(sequence)
