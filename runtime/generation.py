"""One generation: from prompt tokens to a stream of deltas, on any backend."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from threading import Event
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import Backend, Chunk, Outputs
from edgelm.errors import ClosedError, ContextOverflowError
from edgelm.runtime.results import Delta, FinishReason, Timings, TokenLogprob, TopToken
from edgelm.runtime.sampling import Sampler, SamplingParams, log_softmax, top_tokens
from edgelm.runtime.text_stream import TextStream

PREFILL_TOKENS = 512
"""Tokens per call at most while a text is read."""
PIECE_S = 0.25
"""Seconds that a call should take while a prompt is read: a cancelled request stops after the call."""
_FIRST_PIECE = 32

_sequences = count()


class Vocabulary(Protocol):
    """What a generation needs of a tokenizer."""

    @property
    def eog_ids(self) -> frozenset[int]: ...

    def token_bytes(self, token_id: int, /) -> bytes: ...


@contextmanager
def open_sequence(backend: Backend) -> Iterator[int]:
    """A new sequence of the backend, freed at the end whatever happens."""
    sequence = next(_sequences)
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


class Generation:
    """The state of one generation; `deltas()` runs it.

    Args:
        prompt: tokens, at least one.
        cancelled: once set, the generation ends before its next token with finish_reason "cancelled".
        load_s: handed through to the timings.

    Raises:
        ContextOverflowError: the prompt is longer than the context.
    """

    def __init__(
        self, backend: Backend, vocabulary: Vocabulary, prompt: Sequence[int], params: SamplingParams, cancelled: Event, load_s: float = 0.0
    ) -> None:
        n_ctx = backend.info.n_ctx
        if len(prompt) > n_ctx:
            raise ContextOverflowError(len(prompt), n_ctx)
        self._backend = backend
        self._vocabulary = vocabulary
        self._params = params
        self._cancelled = cancelled
        self._load_s = load_s
        self._history = list(prompt)
        self._n_prompt = len(prompt)
        self._n_room = n_ctx - len(prompt) + 1  # the last token is given out, but need not be appended
        self._ends = frozenset() if params.ignore_eos else vocabulary.eog_ids
        self._sampler = Sampler(params, vocabulary.eog_ids if params.ignore_eos else ())
        self._text = TextStream(params.stop_strings)
        self._start = perf_counter()
        self._prefill_s = self._decode_s = 0.0
        self._times: list[float] = []

    def deltas(self) -> Generator[Delta, None, None]:
        """One delta per token, the last one with finish_reason and timings. The sequence is freed when the iterator ends or is closed."""
        self._start = perf_counter()
        with open_sequence(self._backend) as sequence:
            logits = feed(self._backend, sequence, np.asarray(self._history, np.int32), self._cancelled)
            self._prefill_s = perf_counter() - self._start
            while logits is not None:
                begin = perf_counter()
                delta = self._next(logits)
                self._decode_s += perf_counter() - begin
                yield delta
                if delta.finish_reason is not None:
                    return
                begin = perf_counter()
                logits = feed(self._backend, sequence, np.asarray(self._history[-1:], np.int32), self._cancelled)
                self._decode_s += perf_counter() - begin
        yield self._delta("", (), None, "cancelled")

    def _next(self, logits: NDArray[np.float32]) -> Delta:
        token = self._sampler.sample(logits, self._history)
        if token in self._ends:
            return self._delta("", (), None, "stop")
        self._times.append(perf_counter() - self._start)
        self._history.append(token)
        logprobs = None if self._params.logprobs is None else (self._logprob(logits, token, self._params.logprobs),)
        text = self._text.push(self._vocabulary.token_bytes(token))
        reason: FinishReason | None = None
        if self._text.stopped_by is not None:
            reason = "stop"
        elif len(self._times) in (self._params.max_tokens, self._n_room):
            reason = "length"
        return self._delta(text, (token,), logprobs, reason)

    def _delta(self, text: str, tokens: tuple[int, ...], logprobs: tuple[TokenLogprob, ...] | None, reason: FinishReason | None) -> Delta:
        if reason is None:
            return Delta(text, tokens, logprobs)
        timings = Timings(self._load_s, self._prefill_s, self._decode_s, tuple(self._times))
        return Delta(text + self._text.finish(), tokens, logprobs, reason, timings, self._n_prompt)

    def _logprob(self, logits: NDArray[np.float32], token: int, n_top: int) -> TokenLogprob:
        logs = log_softmax(logits)
        best = top_tokens(logits, n_top) if n_top else ()
        top = tuple(TopToken(int(one), self._shown(int(one)), float(logs[one])) for one in best)
        return TokenLogprob(token, self._shown(token), float(logs[token]), top)

    def _shown(self, token: int) -> str:
        return self._vocabulary.token_bytes(token).decode("utf-8", errors="replace")
