"""Standard errors of means over tokens that depend on their neighbours: the windows of a text are the independent units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_LEVEL = 0.95
_LEAST = 8
_STUDENT_T = {1: 12.706, 2: 4.303}  # where the expansion below is not good enough


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error."""

    value: float
    error: float


def clusters(n_tokens: int, n_window: int) -> list[int]:
    """Predicted tokens of each independent part of a text: of its windows, where there are 8 or more.

    The spread of fewer tells too little: then each window is cut into equal parts, so that there are 8 or more. Dependence that reaches
    from one part to the next, which is weak beside that between neighbours, is not seen then (the method of batch means).

    Args:
        n_tokens: predicted tokens, two or more; a window predicts all of its n_window tokens but the first.
    """
    n_whole, rest = divmod(n_tokens, n_window - 1)
    return clusters_of([n_window - 1] * n_whole + [rest] * (rest > 0))


def clusters_of(windows: Sequence[int]) -> list[int]:
    """As clusters, of windows that predict so many tokens each."""
    n_parts = -(-_LEAST // len(windows))
    parts = [window // n_parts + (i < window % n_parts) for window in windows for i in range(n_parts)]
    return [part for part in parts if part]


def clustered_mean(values: NDArray[np.float64], sizes: Sequence[int]) -> Mean:
    """The mean of all values, with an error that allows for any dependence within a cluster.

    With G clusters of sizes n_g, N values in all and their mean m: variance = G / (G - 1) * sum_g (sum_i (x_gi - m))^2 / N^2
    (the ratio estimator of cluster sampling: Cochran, Sampling Techniques, 1977, section 9A).

    Args:
        values: of one cluster after the other, [N], at least one.
        sizes: of the clusters. Of one alone no error can be told: it is not a number.
    """
    mean = float(values.mean())
    if len(sizes) == 1:
        return Mean(mean, float("nan"))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    sums = np.add.reduceat(values - mean, starts)
    return Mean(mean, float(np.sqrt(len(sizes) / (len(sizes) - 1) * (sums**2).sum()) / len(values)))


def clustered_ratio(numerators: NDArray[np.float64], denominators: NDArray[np.float64], sizes: Sequence[int]) -> Mean:
    """R = sum_i x_i / sum_i y_i of pairs (x, y), with an error that allows for any dependence within a cluster.

    The error is that of the mean of x - R y, over the mean of y: the ratio estimator's, linearised about R (Cochran, Sampling Techniques,
    1977, section 6.4, with the clusters' variance as in clustered_mean).

    Args:
        numerators, denominators: x and y of one cluster after the other, [N]; y has a mean that is not 0.
    """
    mean = float(denominators.mean())
    ratio = float(numerators.mean()) / mean
    return Mean(ratio, clustered_mean(numerators - ratio * denominators, sizes).error / mean)


def student_t(n_clusters: int) -> float:
    """By how many standard errors a 95% interval reaches to either side, of a mean over so many clusters (2 or more).

    Student's t with n - 1 degrees: from 3 on by the Cornish-Fisher expansion about the normal quantile, within 1% (Abramowitz and Stegun
    26.7.5).
    """
    z = NormalDist().inv_cdf((1 + _LEVEL) / 2)
    degrees = n_clusters - 1
    expansion = (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
    return _STUDENT_T.get(degrees, expansion)
