"""How good a confidence is: whether it ranks right answers above wrong ones, and whether it means what it says."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgelm.errors import InvalidRequestError

Array = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Reliability:
    """Predicted probabilities beside what happened, in bins of equal width from 0 to 1.

    Attributes:
        predicted: mean probability in each bin, float64 [n_bins]; nan where it is empty.
        observed: share of labels that are true in each bin, float64 [n_bins]; nan where it is empty.
        n_rows: in each bin, int64 [n_bins].
        ece: expected calibration error, the mean of |predicted - observed| weighted by n_rows (Guo et al. 2017).
        brier: mean of (p - label)² (Brier 1950).
    """

    predicted: Array
    observed: Array
    n_rows: NDArray[np.int64]
    ece: float
    brier: float


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Probability that a row whose label is true has a larger score than one whose label is false; ties count half (Mann-Whitney U).

    Args:
        scores: [n_rows], without nan.
        labels: bool [n_rows].

    Returns:
        nan where the labels are all the same: it is not defined.

    Raises:
        InvalidRequestError: different lengths, or a score that is nan.
    """
    s, y = _columns(scores, labels)
    true, false = s[y != 0], np.sort(s[y == 0])
    if not len(true) or not len(false):
        return math.nan
    below = np.searchsorted(false, true, "left") + np.searchsorted(false, true, "right")
    return float(below.sum()) / (2 * len(true) * len(false))


def risk_coverage(scores: ArrayLike, losses: ArrayLike) -> tuple[Array, Array]:
    """Coverage and risk, float64 [n_rows] each: the mean loss of the k rows of the largest scores, for every k.

    Rows of one score may come in any order; the risk is the mean over all of them.

    Raises:
        InvalidRequestError: different lengths, no rows, or a score that is nan.
    """
    s, values = _columns(scores, losses)
    if not len(s):
        raise InvalidRequestError("a risk-coverage curve needs at least one row")
    _, block, count = np.unique(-s, return_inverse=True, return_counts=True)  # blocks of equal scores, largest score first
    means = np.bincount(block, weights=values) / count
    k = np.arange(1, len(s) + 1)
    return k / len(s), np.repeat(means, count).cumsum() / k


def aurc(scores: ArrayLike, losses: ArrayLike) -> float:
    """Area under the risk-coverage curve: the mean of its risks (Geifman, Uziel and El-Yaniv 2019); less is better.

    Raises:
        InvalidRequestError: as of risk_coverage.
    """
    return float(risk_coverage(scores, losses)[1].mean())


def reliability(p: ArrayLike, labels: ArrayLike, n_bins: int = 10) -> Reliability:
    """Compare probabilities with what happened.

    Args:
        p: predicted probability that the label is true, [n_rows].
        labels: bool [n_rows].

    Raises:
        InvalidRequestError: different lengths, no rows, or a probability that is none.
    """
    predicted, y = _columns(p, labels)
    if not len(predicted) or n_bins < 1:
        raise InvalidRequestError(f"{len(predicted)} rows in {n_bins} bins show no reliability; give at least one of each")
    if predicted.min() < 0 or predicted.max() > 1:
        raise InvalidRequestError(f"probabilities must be from 0 to 1; they are from {predicted.min():g} to {predicted.max():g}")
    place = np.minimum((predicted * n_bins).astype(np.int64), n_bins - 1)
    count = np.bincount(place, minlength=n_bins)
    n = np.where(count, count, math.nan)
    mean = np.bincount(place, weights=predicted, minlength=n_bins) / n
    share = np.bincount(place, weights=y, minlength=n_bins) / n
    gaps = np.where(count, np.abs(mean - share), 0.0)
    return Reliability(mean, share, count, float((gaps * count).sum() / len(y)), float(((predicted - y) ** 2).mean()))


def bootstrap(
    statistic: Callable[[Rows], float],
    n_rows: int,
    rounds: int = 2000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """A 95% interval of a statistic: the percentiles over samples of the rows, drawn with replacement (Efron 1979).

    Args:
        statistic: from row numbers, int [any], to a value; nan where it is not defined, which leaves the sample out.
        groups: of each row; rows of one group are drawn together, because they resemble each other.

    Returns:
        (nan, nan) where no sample defines the statistic.

    Raises:
        InvalidRequestError: no rows, or not one group for each.
    """
    if n_rows < 1 or rounds < 1:
        raise InvalidRequestError(f"{rounds} samples of {n_rows} rows give no interval; give at least one of each")
    if groups is not None and len(groups) != n_rows:
        raise InvalidRequestError(f"there are {len(groups)} groups for {n_rows} rows; give one for each row")
    random = np.random.default_rng(seed)
    members: list[Rows] = []
    if groups is not None:
        rows_of: dict[Hashable, list[int]] = {}
        for row, group in enumerate(groups):
            rows_of.setdefault(group, []).append(row)
        members = [np.array(rows, np.intp) for rows in rows_of.values()]

    def sample() -> Rows:
        if not members:
            return random.integers(0, n_rows, n_rows)
        return np.concatenate([members[i] for i in random.integers(0, len(members), len(members))])

    values = np.array([statistic(sample()) for _ in range(rounds)], np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _columns(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise InvalidRequestError(f"two columns of one length are compared; these have the shapes {a.shape} and {b.shape}")
    if np.isnan(a).any() or np.isnan(b).any():
        raise InvalidRequestError("a score or a label is nan; leave out rows for which it is not known")
    return a, b
