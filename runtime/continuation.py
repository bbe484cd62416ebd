"""One text that goes on: from each row of logits to the next token, its text, and the end."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ContextOverflowError
from edgelm.runtime.certainty import TokenCertainty, certainty_of
from edgelm.runtime.constraint import Constraint
from edgelm.runtime.results import Delta, FinishReason, Timings, TokenLogprob, TopToken
from edgelm.runtime.sampling import Sampler, SamplingParams, log_softmax, top_tokens
from edgelm.runtime.text_stream import TextStream


class Vocabulary(Protocol):
    """What a generation needs of a tokenizer."""

    @property
    def eog_ids(self) -> frozenset[int]: ...

    def token_bytes(self, token_id: int, /) -> bytes: ...


class Continuation:
    """What was said so far and how to go on; who computes the logits, and when, is not its concern.

    Args:
        prompt: tokens, at least one.
        n_ctx: tokens that the context holds.
        constraint: keeps the text to params.form; None where it has none.
        load_s: handed through to the timings.

    Attributes:
        history: the tokens so far, prompt included; the last one's logits come next.
        n_prompt: how many of them are the prompt.

    Raises:
        ContextOverflowError: the prompt is longer than the context.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt: Sequence[int],
        params: SamplingParams,
        n_ctx: int,
        load_s: float = 0.0,
        constraint: Constraint | None = None,
    ) -> None:
        if len(prompt) > n_ctx:
            raise ContextOverflowError(len(prompt), n_ctx)
        self.history = list(prompt)
        self.n_prompt = len(prompt)
        self._vocabulary = vocabulary
        self._params = params
        self._load_s = load_s
        self._constraint = constraint
        self._n_room = n_ctx - len(prompt) + 1  # the last token is given out, but need not be appended
        self._ends = frozenset() if params.ignore_eos else vocabulary.eog_ids
        self._sampler = Sampler(params, vocabulary.eog_ids if params.ignore_eos else ())
        self._text = TextStream(params.stop_strings)
        self._start = perf_counter()
        self._prefill_s = self._decode_s = 0.0
        self._times: list[float] = []

    def begin(self) -> None:
        """Its clock starts here, and not when it was made."""
        self._start = perf_counter()

    def prefilled(self) -> None:
        """The prompt has been computed."""
        self._prefill_s = perf_counter() - self._start

    def decoded(self, seconds: float) -> None:
        """So much time went into decoding."""
        self._decode_s += seconds

    def advance(self, logits: NDArray[np.float32]) -> Delta:
        """The next token's delta, from logits float32 [n_vocab]; the last one has a finish_reason and timings."""
        # what does not fit is drawn again among all that does, which leaves the proportions as they are
        token = self._sampler.sample(logits, self.history)
        if self._constraint and not self._constraint.allows(token):
            token = self._sampler.sample(logits, self.history, self._constraint.mask())
        certainties = (certainty_of(logits, token),) if self._params.certainty else None
        if token in self._ends:
            return self._delta("", (), None, "stop", certainties)
        if self._constraint:
            self._constraint.take(token)
        self._times.append(perf_counter() - self._start)
        self.history.append(token)
        logprobs = None if self._params.logprobs is None else (self._logprob(logits, token, self._params.logprobs),)
        text = self._text.push(self._vocabulary.token_bytes(token))
        reason: FinishReason | None = None
        if self._text.stopped_by is not None:
            reason = "stop"
        elif len(self._times) in (self._params.max_tokens, self._n_room):
            reason = "length"
        return self._delta(text, (token,), logprobs, reason, certainties)

    def cancel(self) -> Delta:
        """The last delta of a text that nobody wants any more."""
        return self._delta("", (), None, "cancelled")

    def _delta(
        self,
        text: str,
        tokens: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] | None,
        reason: FinishReason | None,
        certainties: tuple[TokenCertainty, ...] | None = None,
    ) -> Delta:
        if reason is None:
            return Delta(text, tokens, logprobs, certainties=certainties)
        timings = Timings(self._load_s, self._prefill_s, self._decode_s, tuple(self._times))
        text += self._text.finish()
        return Delta(text, tokens, logprobs, reason, timings, self.n_prompt, self._text.stopped_by, certainties)

    def _logprob(self, logits: NDArray[np.float32], token: int, n_top: int) -> TokenLogprob:
        logs = log_softmax(logits)
        best = top_tokens(logits, n_top) if n_top else ()
        top = tuple(TopToken(int(one), self._shown(int(one)), float(logs[one])) for one in best)
        return TokenLogprob(token, self._shown(token), float(logs[token]), top)

    def _shown(self, token: int) -> str:
        return self._vocabulary.token_bytes(token).decode("utf-8", errors="replace")
