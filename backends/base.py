"""The border between an engine and everything above it: tokens in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Outputs(Enum):
    """Which tokens of a chunk give a row of logits."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


@dataclass(frozen=True)
class Chunk:
    """The next tokens of one sequence.

    Attributes:
        sequence: the sequence they continue; a number not seen before starts an empty one.
        tokens: int32 [n_tokens], at least one.
        outputs: which of them give a row of logits.
    """

    sequence: int
    tokens: NDArray[np.int32]
    outputs: Outputs = Outputs.LAST

    @property
    def n_outputs(self) -> int:
        return {Outputs.NONE: 0, Outputs.LAST: 1, Outputs.ALL: len(self.tokens)}[self.outputs]


Batch = Sequence[Chunk]

Progress = Callable[[str], None]
"""Called with one line whenever an engine or an export begins something that takes long (packing weights, compiling kernels)."""

DEFAULT_N_CTX = 4096
"""Tokens of context where nobody asks for a number, if the model was trained for so many."""

ABILITIES = frozenset({"share", "truncate", "hidden", "save"})
"""Methods of a Backend that an engine may lack: share, truncate, save (and restore) of sequences, hidden states."""


@dataclass(frozen=True)
class ModelInfo:
    """What an engine says of the model it holds.

    Attributes:
        backend: name of the engine.
        architecture: as the model file names it ("llama", "gemma3", ...).
        n_vocab, n_embd, n_layers: sizes of the model.
        n_ctx: tokens that one sequence may hold.
        n_ctx_train: tokens that the model was trained for.
        n_threads: threads that compute.
        precision: "int8" or "f32" (or "uint16", on an NPU), the activations' precision in products with quantized weights.
        weight_bytes: bytes of packed weights held in memory.
        bytes_per_token: weight bytes read to decode one token.
        kv_bytes_per_token: bytes of KV cache that one token adds.
        abilities: optional methods that work here, of ABILITIES; the others raise InvalidRequestError.
        providers: for engines that run a graph, how many of its nodes each execution provider got.
    """

    backend: str
    architecture: str
    n_vocab: int
    n_embd: int
    n_layers: int
    n_ctx: int
    n_ctx_train: int
    n_threads: int
    precision: str
    weight_bytes: int
    bytes_per_token: int
    kv_bytes_per_token: int
    abilities: frozenset[str] = ABILITIES
    providers: Mapping[str, int] = field(default_factory=dict)


class Backend(Protocol):
    """An engine with one model in it. Calls on one backend are serialized by the engine itself."""

    @property
    def info(self) -> ModelInfo: ...

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Append each chunk to its sequence; logits float32 [sum of n_outputs, n_vocab], in the batch's order.

        Raises:
            ContextOverflowError: a sequence would exceed n_ctx. Nothing was appended.
            InvalidRequestError: a token is not in the vocabulary, a chunk is empty, or a sequence comes twice.
            InsufficientMemoryError: the KV cache cannot grow. Nothing was appended.
            ClosedError: the backend was closed.
        """
        ...

    def hidden(self, batch: Batch) -> NDArray[np.float32]:
        """As forward, but the final-norm hidden states, float32 [sum of n_outputs, n_embd]."""
        ...

    def length(self, sequence: int) -> int:
        """Tokens that the sequence holds now; 0 for one never seen."""
        ...

    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Start empty sequence `target` with the first n_tokens of `source`, copying as little as possible.

        Raises:
            InvalidRequestError: the source is shorter, or the target is not empty.
        """
        ...

    def truncate(self, sequence: int, n_tokens: int) -> None:
        """Keep only the first n_tokens of the sequence.

        Raises:
            InvalidRequestError: the sequence is shorter.
        """
        ...

    def save(self, sequence: int) -> list[NDArray[np.uint8]]:
        """What `restore` needs to have these tokens again, in pieces. They stay as they are while the sequence is not continued, and
        after it was freed."""
        ...

    def restore(self, sequence: int, n_tokens: int, state: NDArray[np.uint8]) -> None:
        """Start an empty sequence with n_tokens, from all pieces that `save` gave, here or in another process.

        The state must be of the same model, with the same options and precision; what it holds is not checked, only how much.

        Raises:
            InvalidRequestError: the sequence is not empty, or so many bytes are not the state of so many tokens.
            InsufficientMemoryError: the KV cache cannot grow.
        """
        ...

    def free(self, sequence: int) -> None:
        """Forget the sequence and release its KV cache."""
        ...

    def close(self) -> None:
        """Release everything; later calls raise ClosedError. Closing twice is allowed."""
        ...
