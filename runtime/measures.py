"""What a model makes of given tokens, without generating any: logits, log probabilities, embeddings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import Backend, Chunk, Outputs
from edgelm.backends.memory import require_memory
from edgelm.errors import BackendUnavailableError, ContextOverflowError
from edgelm.runtime.generation import PREFILL_TOKENS, open_sequence
from edgelm.runtime.sampling import log_softmax

Tokens = NDArray[np.int32]

_LOGITS_AT_ONCE = 1 << 24


def logits_of(backend: Backend, tokens: Tokens) -> NDArray[np.float32]:
    """Logits after each token, float32 [n_tokens, n_vocab].

    Raises:
        ContextOverflowError: more tokens than the context holds.
        InsufficientMemoryError: the array does not fit the memory that is free.
    """
    n_vocab = backend.info.n_vocab
    require_memory(tokens.size * n_vocab * 4, f"an array of {tokens.size} x {n_vocab} logits")
    rows = np.empty((tokens.size, n_vocab), np.float32)
    for start, logits in _logits_by_chunk(backend, tokens):
        rows[start : start + len(logits)] = logits
    return rows


def log_probabilities(backend: Backend, tokens: Tokens) -> NDArray[np.float64]:
    """ln p of each token after the first, given those before it, float64 [n_tokens - 1]; never holds all logits at once.

    Raises:
        ContextOverflowError: more tokens than the context holds.
    """
    found = np.empty(max(tokens.size - 1, 0), np.float64)
    for start, logits in _logits_by_chunk(backend, tokens[:-1]):
        n = len(logits)
        targets = tokens[start + 1 : start + 1 + n]
        found[start : start + n] = [log_softmax(row)[target] for row, target in zip(logits, targets, strict=True)]
    return found


def embedding_of(backend: Backend, tokens: Tokens) -> NDArray[np.float32]:
    """Mean of the final-norm hidden states over all tokens, scaled to length 1; float32 [n_embd].

    Raises:
        BackendUnavailableError: the backend gives no hidden states.
        ContextOverflowError: more tokens than the context holds.
    """
    info = backend.info
    if "hidden" not in info.abilities:
        raise BackendUnavailableError(f"the backend {info.backend!r} gives no hidden states, so it cannot embed; use another backend")
    _check_fits(backend, tokens)
    total = np.zeros(info.n_embd, np.float64)
    with open_sequence(backend) as sequence:
        for start in range(0, tokens.size, PREFILL_TOKENS):
            total += backend.hidden([Chunk(sequence, tokens[start : start + PREFILL_TOKENS], Outputs.ALL)]).sum(axis=0, dtype=np.float64)
    return (total / np.linalg.norm(total)).astype(np.float32)


def _logits_by_chunk(backend: Backend, tokens: Tokens) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(place of the first, logits) of one run of tokens after another; a run's logits stay below 64 MiB."""
    _check_fits(backend, tokens)
    n = max(1, min(PREFILL_TOKENS, _LOGITS_AT_ONCE // backend.info.n_vocab))
    with open_sequence(backend) as sequence:
        for start in range(0, tokens.size, n):
            yield start, backend.forward([Chunk(sequence, tokens[start : start + n], Outputs.ALL)])


def _check_fits(backend: Backend, tokens: Tokens) -> None:
    n_ctx = backend.info.n_ctx
    if tokens.size > n_ctx:
        raise ContextOverflowError(tokens.size, n_ctx, "give it in shorter pieces or open the model with a larger n_ctx")
