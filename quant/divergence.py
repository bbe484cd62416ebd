"""How far one engine's predictions lie from another's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError

_VALUES_AT_ONCE = 1 << 17  # float64 temporaries of a megabyte stay in the cache


@dataclass(frozen=True)
class Divergence:
    """Of predictions from a judge's.

    Attributes:
        n_tokens: positions compared.
        mean_kl, max_kl, median_kl, p99_kl: Kullback-Leibler divergence KL(judge || other) in nats, over the positions.
        top_agreement: fraction of positions where both rank the same token first.
    """

    n_tokens: int
    mean_kl: float
    max_kl: float
    top_agreement: float
    median_kl: float
    p99_kl: float


@dataclass(frozen=True)
class TokenScores:
    """Two engines' predictions of the same tokens, [n] each.

    Attributes:
        judge_nll, other_nll: -ln p of the token that came, in nats; infinite where its logit is, not a number where any logit is none.
        kl: KL(judge || other) of the whole distribution, in nats.
        agrees: whether both rank the same token first.
    """

    judge_nll: NDArray[np.float64]
    other_nll: NDArray[np.float64]
    kl: NDArray[np.float64]
    agrees: NDArray[np.bool_]


@dataclass(frozen=True)
class Predictions:
    """A judge's predictions, computed once to be compared with several others'.

    Attributes:
        logits: float32 [n, n_vocab].
        p: their softmax, float64 [n, n_vocab].
        log_sum: ln sum_i exp(logit_i), float64 [n]; not a number where any logit is none.
        top: the token of the highest logit, [n].
    """

    logits: NDArray[np.float32]
    p: NDArray[np.float64]
    log_sum: NDArray[np.float64]
    top: NDArray[np.intp]


def predictions(logits: NDArray[np.float32]) -> Predictions:
    """What is needed of a judge's logits [n, n_vocab].

    Raises:
        InvalidRequestError: there is no row, or they have another number of dimensions.
    """
    if logits.ndim != 2 or not len(logits):
        raise InvalidRequestError(f"logits of shape {logits.shape} cannot be compared; they must be [n, n_vocab]")
    log_sum = np.empty(len(logits))
    p = np.empty(logits.shape)
    for rows in _row_blocks(logits.shape):
        log_sum[rows] = _log_sum(logits[rows])
        with np.errstate(invalid="ignore"):
            np.exp(logits[rows] - log_sum[rows, None], out=p[rows])
    return Predictions(logits, p, log_sum, logits.argmax(axis=1))


def divergence(judge: NDArray[np.float32], other: NDArray[np.float32]) -> Divergence:
    """Compare logits [n, n_vocab] with the judge's.

    Infinite logits are allowed where both have them.

    Raises:
        InvalidRequestError: the shapes differ, there is no row, or a logit is not a number.
    """
    scores = token_scores(predictions(judge), other, np.zeros(len(judge), np.int32))
    if np.isnan(scores.kl).any():
        raise InvalidRequestError(f"the logits of position {int(np.isnan(scores.kl).argmax())} have values that are not numbers")
    with np.errstate(invalid="ignore"):  # between infinite divergences there is no quantile
        median, p99 = np.quantile(scores.kl, [0.5, 0.99])
    agreement = float(scores.agrees.mean())
    return Divergence(len(scores.kl), float(scores.kl.mean()), float(scores.kl.max()), agreement, float(median), float(p99))


def token_scores(judge: Predictions, other: NDArray[np.float32], targets: NDArray[np.int32]) -> TokenScores:
    """Compare logits [n, n_vocab] with the judge's, where the tokens that came are targets [n]; equal logits diverge by exactly 0.

    With x the judge's logits, y the other's and p = softmax(x), in float64:
    KL(softmax(x) || softmax(y)) = sum_i p_i (x_i - y_i) - (ln sum_i exp x_i - ln sum_i exp y_i).

    Raises:
        InvalidRequestError: the shapes differ.
    """
    if judge.logits.shape != other.shape:
        raise InvalidRequestError(f"logits of shapes {judge.logits.shape} and {other.shape} cannot be compared; both must be [n, n_vocab]")
    log_sum, kl = np.empty(len(other)), np.empty(len(other))
    for rows in _row_blocks(other.shape):
        log_sum[rows] = _log_sum(other[rows])
        kl[rows] = _mean_difference(judge.p[rows], judge.logits[rows], other[rows]) - (judge.log_sum[rows] - log_sum[rows])
    judge_nll, other_nll = (
        sums - np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        for sums, logits in ((judge.log_sum, judge.logits), (log_sum, other))
    )
    # Rounding may leave a tiny negative divergence, which is zero.
    return TokenScores(judge_nll, other_nll, np.maximum(kl, 0.0), judge.top == other.argmax(axis=1))


def _row_blocks(shape: tuple[int, ...]) -> list[slice]:
    """A few rows at a time."""
    step = max(1, _VALUES_AT_ONCE // shape[1])
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def _log_sum(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """ln sum_i exp x_i of each row = max + ln sum_i exp(x_i - max); not a number where a logit is none, or plus infinity."""
    highest = logits.max(axis=1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        shifted = logits - highest[:, None]
        total: NDArray[np.float64] = highest + np.log(np.exp(shifted, out=shifted).sum(axis=1))
    return total


def _mean_difference(p: NDArray[np.float64], x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float64]:
    """sum_i p_i (x_i - y_i) of each row; tokens without any chance count nothing, though their logits may be infinite."""
    with np.errstate(invalid="ignore"):
        difference = np.subtract(x, y, dtype=np.float64)
        difference[p == 0] = 0.0
        mean: NDArray[np.float64] = np.einsum("ij,ij->i", p, difference)
    return mean
