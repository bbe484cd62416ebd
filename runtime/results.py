"""What a generation gives back: whole as a Completion, or piece by piece as Deltas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.certainty import TokenCertainty

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TopToken:
    """One of the most likely tokens at a position.

    Attributes:
        token_id: number in the vocabulary.
        token: its text; bytes that are no UTF-8 by themselves show as U+FFFD.
        logprob: natural logarithm of its probability under the model, before any sampling filter.
    """

    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True)
class TokenLogprob:
    """Log probability of a generated token.

    Attributes:
        token_id, token, logprob: as in TopToken.
        top: the most likely tokens at its position, best first, as many as were asked for.
    """

    token_id: int
    token: str
    logprob: float
    top: tuple[TopToken, ...] = ()


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds.

    Attributes:
        load_s: opening the model, once per LLM.
        prefill_s: from the start of the request until the prompt was computed.
        decode_s: computing after that; time in which the caller of a stream held it up is not counted.
        token_times: for every generated token, when it was ready, since the start of the request.
    """

    load_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    token_times: tuple[float, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed: tokens after the first one, which prefill gives, per second of decoding; 0 below two tokens."""
        n = len(self.token_times) - 1
        return n / self.decode_s if n > 0 and self.decode_s > 0 else 0.0

    @property
    def time_to_first_token(self) -> float:
        """Seconds from the start of the request to its first token; 0 where there is none."""
        return self.token_times[0] if self.token_times else 0.0


@dataclass(frozen=True)
class Delta:
    """The next piece of a generation.

    Attributes:
        text: what can be shown now; empty while characters or a possible stop string are incomplete.
        token_ids: tokens generated since the last piece.
        logprobs: of those tokens, where they were asked for.
        finish_reason: on the last piece only: "stop" (end of text or a stop string), "length" (max_tokens or the
            context is used up) or "cancelled".
        timings, n_prompt_tokens: on the last piece only.
        stop_string: on the last piece, the stop string that ended the text, if one did.
        certainties: of those tokens, where they were asked for; on the last piece, also of the token that ended the text, if one did.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    n_prompt_tokens: int | None = None
    stop_string: str | None = None
    certainties: tuple[TokenCertainty, ...] | None = None


@dataclass(frozen=True)
class Completion:
    """A finished generation.

    Attributes:
        text: the generated text, without the prompt and without the stop string.
        token_ids: the generated tokens, without the one that ended the text.
        finish_reason: see Delta.
        logprobs: one per token, where they were asked for.
        n_prompt_tokens, n_generated: tokens read and tokens written.
        certainties: one per token and, last, of the token that ended the text, if one did; where they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    timings: Timings
    n_prompt_tokens: int
    n_generated: int
    certainties: tuple[TokenCertainty, ...] | None = None


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text.

    Attributes:
        token_ids: the n tokens of the text, with the beginning-of-text token where the model has one.
        logprobs: float64 [n - 1]; logprobs[i] is ln p(token_ids[i + 1] | token_ids[: i + 1]).
    """

    token_ids: tuple[int, ...]
    logprobs: NDArray[np.float64]

    @property
    def total(self) -> float:
        """ln p of the whole text, its first token given."""
        return float(self.logprobs.sum())

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log probability; nan for fewer than two tokens."""
        return float(np.exp(-self.logprobs.mean())) if self.logprobs.size else float("nan")


def collect(deltas: Iterable[Delta]) -> Completion:
    """Join the pieces of one generation; the last one must carry its finish_reason and timings."""
    pieces = list(deltas)
    last = pieces[-1] if pieces else Delta("")
    if last.finish_reason is None or last.timings is None:
        raise ValueError("the generation has not ended: its last piece has no finish_reason")
    token_ids = tuple(token for piece in pieces for token in piece.token_ids)
    wants_logprobs = any(piece.logprobs is not None for piece in pieces)
    logprobs = tuple(one for piece in pieces for one in piece.logprobs or ())
    wants_certainties = any(piece.certainties is not None for piece in pieces)
    certainties = tuple(one for piece in pieces for one in piece.certainties or ())
    return Completion(
        text="".join(piece.text for piece in pieces),
        token_ids=token_ids,
        finish_reason=last.finish_reason,
        logprobs=logprobs if wants_logprobs else None,
        timings=last.timings,
        n_prompt_tokens=last.n_prompt_tokens or 0,
        n_generated=len(token_ids),
        certainties=certainties if wants_certainties else None,
    )
