"""The checks that every engine makes of a batch before it computes anything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgelm.backends.base import Batch, Chunk
from edgelm.errors import ContextOverflowError, InvalidRequestError


def check_batch(batch: Batch, n_vocab: int, n_ctx: int, length: Callable[[int], int]) -> None:
    """Refuse what Backend.forward promises to refuse.

    Args:
        length: tokens that a sequence holds now.

    Raises:
        InvalidRequestError: a sequence comes twice, a chunk is empty, or a token is not in the vocabulary.
        ContextOverflowError: a sequence would exceed n_ctx.
    """
    if len(batch) > 1 and len({chunk.sequence for chunk in batch}) < len(batch):
        raise InvalidRequestError("a sequence comes twice in one batch; join its tokens into one chunk")
    for chunk in batch:
        _check_tokens(chunk, n_vocab)
        total = length(chunk.sequence) + len(chunk.tokens)
        if total > n_ctx:
            raise ContextOverflowError(total, n_ctx)


def _check_tokens(chunk: Chunk, n_vocab: int) -> None:
    tokens = np.asarray(chunk.tokens)
    if tokens.ndim != 1 or not len(tokens):
        raise InvalidRequestError(
            f"the chunk of sequence {chunk.sequence} has tokens of shape {tokens.shape}; give at least one, in one dimension"
        )
    least, most = (tokens[0], tokens[0]) if len(tokens) == 1 else (tokens.min(), tokens.max())
    if least < 0 or most >= n_vocab:
        wrong = tokens[(tokens < 0) | (tokens >= n_vocab)]
        raise InvalidRequestError(f"token {wrong[0]} is not in the vocabulary of {n_vocab} tokens")
