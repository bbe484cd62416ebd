"""From logits to the next token.

The filters are applied in llama.cpp's default order: logit bias, penalties, top-k, top-p, min-p, temperature, and then a
draw. The defaults are llama.cpp's too (temperature 0.8, top-k 40, top-p 0.95, min-p 0.05), so that both can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import MappingProxyType
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.runtime.form import Form

Logits = NDArray[np.float32]
_FIRST_NUCLEUS = 256
_COLUMN = 32  # logits that one maximum stands for, in the search for the largest


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when a generation ends. Checked once, when it is made.

    Attributes:
        temperature: 0 always takes the most likely token; larger values draw more freely.
        top_k: draw among the k most likely tokens; 0 for all.
        top_p: draw among the fewest most likely tokens whose probabilities add up to p; 1 for all.
        min_p: drop tokens less likely than min_p times the most likely one; 0 drops none.
        repeat_penalty: divides positive logits, and multiplies negative ones, of tokens seen in the window; 1 for none.
        presence_penalty: subtracted from the logits of tokens seen in the window.
        frequency_penalty: subtracted once for every time the token was seen in the window.
        penalty_window: how many of the last tokens, prompt included, the penalties look at; -1 for all, 0 for none.
        logit_bias: added to the logits of these tokens; -inf forbids one.
        seed: the same seed gives the same text; None draws a fresh one.
        max_tokens: tokens to generate at most; None goes on until the context is full.
        stop: text that ends the generation and is not part of it; one string or several.
        logprobs: None for none, n for the log probability of each generated token and of the n most likely ones.
        certainty: tell how certain the model was of each generated token, and of the end.
        ignore_eos: never let the model end the text (for benchmarks).
        form: what the text must be: a JSON schema, a regular expression or a grammar; None for anything.

    Raises:
        InvalidRequestError: a value that makes no sense.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None
    max_tokens: int | None = 512
    stop: str | Sequence[str] = ()
    logprobs: int | None = None
    certainty: bool = False
    ignore_eos: bool = False
    form: Form | None = None

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0)
        _check_count("top_k", self.top_k, 0)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise InvalidRequestError("top_p must be greater than 0; 1 switches it off")
        # wider than anybody needs, and narrow enough that no logit overflows a float32
        _check_number("repeat_penalty", self.repeat_penalty, 1e-3, 1e3)
        _check_number("presence_penalty", self.presence_penalty, -1e3, 1e3)
        _check_number("frequency_penalty", self.frequency_penalty, -1e3, 1e3)
        _check_count("penalty_window", self.penalty_window, -1)
        for name, value, least in (("seed", self.seed, 0), ("max_tokens", self.max_tokens, 1), ("logprobs", self.logprobs, 0)):
            if value is not None:
                _check_count(name, value, least)
        _check_bias(self.logit_bias)
        if not isinstance(self.stop, Sequence) or not all(isinstance(stop, str) and stop for stop in self.stop_strings):
            raise InvalidRequestError(f"stop is {self.stop!r}; it must be one or several non-empty strings")
        if self.form is not None and self.ignore_eos:
            raise InvalidRequestError("a text of a given form ends where the form does; leave ignore_eos out")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def _penalizes(self) -> bool:
        wanted = self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        return wanted and self.penalty_window != 0


class SamplingFields(TypedDict, total=False):
    """The fields of SamplingParams as keyword arguments."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    logit_bias: Mapping[int, float]
    seed: int | None
    max_tokens: int | None
    stop: str | Sequence[str]
    logprobs: int | None
    certainty: bool
    ignore_eos: bool
    form: Form | None


class Sampler:
    """Draws the tokens of one generation; it holds the generation's own random numbers.

    Args:
        params: what to draw and how.
        forbidden: tokens that must never be drawn.
    """

    def __init__(self, params: SamplingParams, forbidden: Iterable[int] = ()) -> None:
        self._params = params
        self._random = np.random.default_rng(params.seed)
        bias = {**params.logit_bias, **dict.fromkeys(forbidden, -math.inf)}
        self._biased = np.fromiter(bias.keys(), np.int64, len(bias))
        self._bias = np.fromiter(bias.values(), np.float32, len(bias))

    def sample(self, logits: Logits, history: Sequence[int] = (), mask: Logits | None = None) -> int:
        """The next token.

        Args:
            logits: float32 [n_vocab], left unchanged.
            history: the tokens so far, prompt included.
            mask: float32 [n_vocab], added to the logits: 0 for tokens that may be drawn, else minus infinity; None where all may.

        Raises:
            InvalidRequestError: logit_bias names a token that is not in the vocabulary.
        """
        params = self._params
        adjusted = self._adjusted(logits, history)
        if mask is not None:
            adjusted = adjusted + mask
            if adjusted.max() == -math.inf:
                raise InvalidRequestError("logit_bias forbids every token that the form of the answer allows; allow at least one")
        if params.temperature == 0.0 or params.top_k == 1:
            return int(adjusted.argmax())
        tokens = top_tokens(adjusted, params.top_k) if params.top_k else np.arange(adjusted.size)
        kept = adjusted[tokens]
        weights = np.exp(kept - kept.max())  # relative to the most likely token, so that min_p compares with them as they are
        wanted = params.top_p * float(weights.sum(dtype=np.float64))
        likely = weights >= params.min_p  # before top-p: both keep the first tokens of one ranking, and few are left to rank
        tokens, weights = tokens[likely], weights[likely]
        if params.top_p < 1.0:
            tokens, weights = _nucleus(tokens, weights, wanted)
        weights = weights.astype(np.float64) ** (1.0 / params.temperature)
        sums = weights.cumsum()
        drawn = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        return int(tokens[min(drawn, tokens.size - 1)])

    def _adjusted(self, logits: Logits, history: Sequence[int]) -> Logits:
        """The logits after logit bias and penalties; a copy only where there are any."""
        params = self._params
        if self._biased.size == 0 and not params._penalizes:
            return logits
        adjusted = logits.copy()
        if self._biased.size:
            if self._biased.max() >= logits.size:
                raise InvalidRequestError(f"logit_bias names token {self._biased.max()}, but the vocabulary has {logits.size} tokens")
            adjusted[self._biased] += self._bias
            if self._biased.size == logits.size and adjusted.max() == -math.inf:
                raise InvalidRequestError("logit_bias forbids every token of the vocabulary; allow at least one")
        if params._penalizes:
            _penalize(adjusted, history, params)
        return adjusted


def _penalize(logits: Logits, history: Sequence[int], params: SamplingParams) -> None:
    """Lower the logits of the tokens in the window, in place (Keskar et al. 2019 for the repeat penalty)."""
    window = history if params.penalty_window < 0 else history[-params.penalty_window :]
    tokens, counts = np.unique(np.asarray(window, np.int64), return_counts=True)
    seen = logits[tokens]
    seen = np.where(seen > 0, seen / params.repeat_penalty, seen * params.repeat_penalty)
    logits[tokens] = seen - counts * params.frequency_penalty - params.presence_penalty


def top_tokens(logits: Logits, k: int) -> NDArray[np.int64]:
    """The k tokens of the largest logits, best first, of equal ones the first; fewer where the others are minus infinity.

    The logits are dealt into columns. k columns have a maximum of at least the k-th largest of the columns' maxima, so that what is less
    cannot be among the k best. Few are left to sort.
    """
    n_columns = logits.size // _COLUMN
    best = np.arange(logits.size)
    if k < n_columns:
        maxima = logits[: n_columns * _COLUMN].reshape(_COLUMN, n_columns).max(axis=0)
        least = np.partition(maxima, n_columns - k)[n_columns - k]
        if not np.isnan(least):  # a broken model's logits are all sorted
            best = np.flatnonzero(logits >= max(least, np.finfo(np.float32).min))
    return best[np.lexsort((best, -logits[best]))][:k]


def _nucleus(tokens: NDArray[np.int64], weights: NDArray[np.float32], wanted: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The fewest most likely tokens whose weights add up to `wanted`, or all of them (Holtzman et al. 2019)."""
    k = _FIRST_NUCLEUS
    while True:
        ranked = top_tokens(weights, k)
        sums = weights[ranked].cumsum(dtype=np.float64)
        if sums[-1] >= wanted or k >= weights.size:
            kept = ranked[: int(np.searchsorted(sums, wanted)) + 1]
            return tokens[kept], weights[kept]
        k *= 8


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities, float64 [..., n_vocab], from logits [..., n_vocab]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _check_bias(logit_bias: Mapping[int, float]) -> None:
    if not isinstance(logit_bias, Mapping):
        raise InvalidRequestError(f"logit_bias is {logit_bias!r:.60}; it must be a dictionary from tokens to numbers")
    for token, bias in logit_bias.items():
        _check_count("a token in logit_bias", token, 0)
        if token > np.iinfo(np.int32).max:
            raise InvalidRequestError(f"logit_bias names token {token}, which no vocabulary has")
        if bias != -math.inf:
            _check_number(f"logit_bias of token {token}", bias, -1e30, 1e30)


def _check_number(name: str, value: float, least: float, most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not least <= value <= most:
        bounds = (
            f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}" if math.isfinite(least) else "that is finite"
        )
        raise InvalidRequestError(f"{name} is {value!r}; it must be a number {bounds}")


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidRequestError(f"{name} is {value!r}; it must be a whole number of at least {least}")
