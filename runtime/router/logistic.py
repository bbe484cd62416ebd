"""Logistic regression with few inputs, fitted by Newton's method (iteratively reweighted least squares)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError

Array = NDArray[np.float64]
_STEPS = 100
_SMALL = 1e-9


@dataclass(frozen=True)
class Logistic:
    """p(y = 1 | x) = sigmoid(bias + weights · (x - mean) / scale).

    Attributes:
        mean, scale, weights: of each input, float64 [n].
        bias: of inputs that are all at their means.
    """

    mean: Array
    scale: Array
    weights: Array
    bias: float

    @classmethod
    def fit(cls, inputs: Array, labels: NDArray[np.bool_] | Array, penalty: float = 1.0) -> Self:
        """The weights of the largest penalized likelihood.

        Args:
            inputs: float64 [n_rows, n], finite.
            labels: bool [n_rows], or float64 [n_rows] from 0 to 1, a share of rows that are true; not all the same.
            penalty: half of it times the sum of the squared weights of the standardized inputs is subtracted from the log likelihood.

        Raises:
            InvalidRequestError: the labels are all the same, or an input is not finite.
        """
        if not np.isfinite(inputs).all():
            raise InvalidRequestError("an input of the regression is not finite; leave out rows for which it is not known")
        labels = labels.astype(np.float64)
        if not len(labels) or labels.min() == labels.max():
            raise InvalidRequestError(
                f"all {len(labels)} rows have the same label, from which nothing can be learned; give examples of both"
            )
        mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
        scale = np.where(scale > _SMALL * (np.abs(mean) + 1), scale, 1.0)  # an input that never changes says nothing
        design = np.column_stack([np.ones(len(inputs)), (inputs - mean) / scale])
        ridge = np.full(design.shape[1], penalty)
        ridge[0] = 0.0
        beta = np.zeros(design.shape[1])
        loss = _loss(design, labels, ridge, beta)
        for _ in range(_STEPS):
            p = sigmoid(design @ beta)
            gradient = design.T @ (p - labels) + ridge * beta
            hessian = (design * (p * (1 - p))[:, None]).T @ design + np.diag(ridge + _SMALL)
            step = np.linalg.solve(hessian, gradient)
            while (new := _loss(design, labels, ridge, beta - step)) > loss + _SMALL and np.abs(step).max() > _SMALL:
                step /= 2  # Newton's step may be too long far from the optimum
            beta, loss = beta - step, new
            if np.abs(step).max() < 1e-7:
                break
        return cls(mean, scale, beta[1:], float(beta[0]))

    def probability(self, inputs: Array) -> Array:
        """p(y = 1), float64 [...], for inputs [..., n]."""
        return sigmoid(self.bias + (inputs - self.mean) / self.scale @ self.weights)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def _loss(design: Array, labels: Array, ridge: Array, beta: Array) -> float:
    x = design @ beta
    return float((np.logaddexp(0.0, x) - labels * x).sum() + 0.5 * (ridge * beta**2).sum())
