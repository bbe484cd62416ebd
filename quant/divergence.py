"""How far one engine's predictions lie from another's."""

from __future__ import annotations

from collections.abc import Iterator
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


def divergence(judge: NDArray[np.float32], other: NDArray[np.float32]) -> Divergence:
    """Compare logits [n, n_vocab] with the judge's.

    KL(p || q) = sum_i p_i (ln p_i - ln q_i), in float64. Infinite logits are allowed where both have them.

    Raises:
        InvalidRequestError: the shapes differ, there is no row, or a logit is not a number.
    """
    rows = np.concatenate([_kl(p, q) for _, p, q in _softmaxes(judge, other)])
    if np.isnan(rows).any():
        raise InvalidRequestError(f"the logits of position {int(np.isnan(rows).argmax())} have values that are not numbers")
    agreement = float(np.mean(judge.argmax(axis=1) == other.argmax(axis=1)))
    with np.errstate(invalid="ignore"):  # between infinite divergences there is no quantile
        median, p99 = np.quantile(rows, [0.5, 0.99])
    return Divergence(len(rows), float(rows.mean()), float(rows.max()), agreement, float(median), float(p99))


def token_scores(judge: NDArray[np.float32], other: NDArray[np.float32], targets: NDArray[np.int32]) -> TokenScores:
    """Compare logits [n, n_vocab] with the judge's, where the tokens that came are targets [n]; equal logits diverge by exactly 0.

    Raises:
        InvalidRequestError: the shapes differ, or there is no row.
    """
    parts: list[tuple[NDArray[np.float64], ...]] = []
    for start, p, q in _softmaxes(judge, other):
        picks = targets[start : start + len(p.p), None]
        parts.append((*(-np.take_along_axis(each.log_p, picks, axis=1)[:, 0] for each in (p, q)), _kl(p, q)))
    judge_nll, other_nll, kl = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return TokenScores(judge_nll, other_nll, kl, judge.argmax(axis=1) == other.argmax(axis=1))


@dataclass(frozen=True)
class _Softmax:
    """Probabilities of some rows of logits and their logarithms, float64 [n, n_vocab] each."""

    p: NDArray[np.float64]
    log_p: NDArray[np.float64]


def _softmaxes(judge: NDArray[np.float32], other: NDArray[np.float32]) -> Iterator[tuple[int, _Softmax, _Softmax]]:
    """(first row, the judge's, the other's) of a few rows at a time."""
    if judge.shape != other.shape or judge.ndim != 2 or not len(judge):
        raise InvalidRequestError(f"logits of shapes {judge.shape} and {other.shape} cannot be compared; both must be [n, n_vocab]")
    n_rows = max(1, _VALUES_AT_ONCE // judge.shape[1])
    for start in range(0, len(judge), n_rows):
        rows = slice(start, start + n_rows)
        yield start, _softmax(judge[rows]), _softmax(other[rows])


def _softmax(logits: NDArray[np.float32]) -> _Softmax:
    """ln p = x - max - ln sum exp(x - max), and p."""
    with np.errstate(invalid="ignore"):
        log_p = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        p = np.exp(log_p)
        total = p.sum(axis=1, keepdims=True)
        log_p -= np.log(total)
        p /= total
    return _Softmax(p, log_p)


def _kl(p: _Softmax, q: _Softmax) -> NDArray[np.float64]:
    """KL(p || q) of each row, [n]; not a number where a logit is none. Rounding may leave a tiny negative sum, which is zero."""
    with np.errstate(invalid="ignore"):
        terms = np.where(p.p > 0, p.p * (p.log_p - q.log_p), 0.0)
    broken = np.isnan(p.log_p).any(axis=1) | np.isnan(q.log_p).any(axis=1)
    kl: NDArray[np.float64] = np.where(broken, np.nan, np.maximum(terms.sum(axis=1), 0.0))
    return kl
