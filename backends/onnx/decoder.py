"""The border between the engine, which knows sequences, and the graphs, which know arrays of slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Run:
    """The next tokens of the sequence in one slot.

    Attributes:
        slot: where the sequence's KV cache is.
        n_past: tokens that the slot holds already; keys and values of the new ones are stored from there on.
        tokens: int32 [n], at least one.
        rows: int64 [n_rows], ascending: which of these tokens give outputs, counted from the first.
    """

    slot: int
    n_past: int
    tokens: NDArray[np.int32]
    rows: NDArray[np.int64]


class Decoder(Protocol):
    """The graphs of one exported model, with the KV cache of all slots. Not thread-safe: the engine lets one call in at a time."""

    @property
    def providers(self) -> Mapping[str, int]:
        """Nodes that each execution provider got, by its short name ("cpu", "qnn", ...)."""
        ...

    @property
    def n_ctx(self) -> int:
        """Tokens that one slot holds."""
        ...

    @property
    def n_vocab(self) -> int:
        """Columns of the logits."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights held in memory."""
        ...

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights in the graph that decodes single tokens."""
        ...

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token adds in all layers."""
        ...

    def reserve(self, n_slots: int) -> None:
        """Make room for slots 0 .. n_slots - 1, keeping what the slots there hold.

        Raises:
            InsufficientMemoryError: there is no memory for them; the slots there stay as they are.
        """
        ...

    def run(self, runs: Sequence[Run], hidden: bool) -> list[NDArray[np.float32]]:
        """Compute the tokens and store their keys and values, at most one run per slot.

        Returns:
            For each run logits float32 [n_rows, n_vocab], or final-norm hidden states float32 [n_rows, n_embd] where `hidden`.
            The arrays are the caller's: a later run does not change them.

        Raises:
            BackendUnavailableError: the provider failed. What the slots held below n_past is unchanged.
        """
        ...

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Copy keys and values of the first n_tokens of one slot to another."""
        ...

    def close(self) -> None:
        """Release the graphs and the cache. Closing twice is allowed."""
        ...
