"""One generation: from prompt tokens to a stream of deltas, on any backend."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from threading import Event
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import Backend, Chunk, Outputs
from edgelm.errors import ClosedError
from edgelm.runtime.continuation import Continuation
from edgelm.runtime.results import Delta

PREFILL_TOKENS = 512
"""Tokens per call at most while a text is read."""
PIECE_S = 0.25
"""Seconds that a call should take while a prompt is read: a cancelled request stops after the call."""
_FIRST_PIECE = 32

_sequences = count()


def new_sequence() -> int:
    """A number that no sequence of this process has had."""
    return next(_sequences)


@contextmanager
def open_sequence(backend: Backend) -> Iterator[int]:
    """A new sequence of the backend, freed at the end whatever happens."""
    sequence = new_sequence()
    try:
        yield sequence
    finally:
        with suppress(ClosedError):  # closing the backend freed everything
            backend.free(sequence)


def feed(backend: Backend, sequence: int, tokens: NDArray[np.int32], cancelled: Event) -> NDArray[np.float32] | None:
    """Append tokens to the sequence; the last one's logits float32 [n_vocab], or None when cancelled.

    A long prompt goes in pieces of what the engine does in PIECE_S, so that a cancelled request stops soon on a slow machine too.
    """
    start, size = 0, _FIRST_PIECE
    while not cancelled.is_set():
        if start + size == len(tokens) - 1:
            size -= 1  # engines may compute a single token in another order; a prompt's arithmetic must not hang on the clock
        piece = tokens[start : start + size]
        start += len(piece)
        if start == len(tokens):
            logits: NDArray[np.float32] = backend.forward([Chunk(sequence, piece, Outputs.LAST)])[0]
            return logits
        begin = perf_counter()
        backend.forward([Chunk(sequence, piece, Outputs.NONE)])
        size = int(min(max(_FIRST_PIECE, len(piece) * PIECE_S / (perf_counter() - begin)), PREFILL_TOKENS))
    return None


def generate(backend: Backend, text: Continuation, cancelled: Event) -> Generator[Delta, None, None]:
    """One delta per token, the last one with finish_reason and timings; whoever pulls them drives the computation.

    The sequence is freed when the generator ends or is closed.

    Args:
        cancelled: once set, the generation ends before its next token with finish_reason "cancelled".
    """
    text.begin()
    with open_sequence(backend) as sequence:
        logits = feed(backend, sequence, np.asarray(text.history, np.int32), cancelled)
        text.prefilled()
        while logits is not None:
            begin = perf_counter()
            delta = text.advance(logits)
            text.decoded(perf_counter() - begin)
            yield delta
            if delta.finish_reason is not None:
                return
            begin = perf_counter()
            logits = feed(backend, sequence, np.asarray(text.history[-1:], np.int32), cancelled)
            text.decoded(perf_counter() - begin)
    yield text.cancel()
