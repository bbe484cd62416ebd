"""How far one engine's predictions lie from another's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError

_CHUNK_ROWS = 16  # bounds the float64 temporaries to some 100 MB for a vocabulary of 262,144


@dataclass(frozen=True)
class Divergence:
    """Of predictions from a judge's.

    Attributes:
        n_tokens: positions compared.
        mean_kl, max_kl: Kullback-Leibler divergence KL(judge || other) in nats, over the positions.
        top_agreement: fraction of positions where both rank the same token first.
    """

    n_tokens: int
    mean_kl: float
    max_kl: float
    top_agreement: float


def divergence(judge: NDArray[np.float32], other: NDArray[np.float32]) -> Divergence:
    """Compare logits [n, n_vocab] with the judge's.

    KL(p || q) = sum_i p_i (ln p_i - ln q_i), in float64. Infinite logits are allowed where both have them.

    Raises:
        InvalidRequestError: the shapes differ, there is no row, or a logit is not a number.
    """
    if judge.shape != other.shape or judge.ndim != 2 or not len(judge):
        raise InvalidRequestError(f"logits of shapes {judge.shape} and {other.shape} cannot be compared; both must be [n, n_vocab]")
    rows = np.concatenate(
        [_kl_rows(judge[start : start + _CHUNK_ROWS], other[start : start + _CHUNK_ROWS]) for start in range(0, len(judge), _CHUNK_ROWS)]
    )
    if np.isnan(rows).any():
        raise InvalidRequestError(f"the logits of position {int(np.isnan(rows).argmax())} have values that are not numbers")
    agreement = float(np.mean(judge.argmax(axis=1) == other.argmax(axis=1)))
    return Divergence(len(rows), float(rows.mean()), float(rows.max()), agreement)


def _kl_rows(judge: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(judge || other) of each row, [n]; not a number where a logit is none. Rounding may leave a tiny negative sum, which is zero."""
    log_p, log_q = _log_softmax(judge), _log_softmax(other)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    broken = np.isnan(log_p).any(axis=1) | np.isnan(log_q).any(axis=1)
    kl: NDArray[np.float64] = np.where(broken, np.nan, np.maximum(terms.sum(axis=1), 0.0))
    return kl


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """x - max - ln sum exp(x - max), rows of float64."""
    with np.errstate(invalid="ignore"):
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
