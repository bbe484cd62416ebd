"""The curvature of a linear layer's output error, H = X X^T / n, and its inverse as GPTQ takes it.

The output error of a row with weight error d is sum_t (d . x_t)^2 = n d H d^T, which is what quantizing should keep small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError

Array = NDArray[np.float32]
_ATTEMPTS = 4  # each with ten times the damping of the one before
_LEAF = 256


@dataclass(frozen=True, eq=False)
class InverseFactor:
    """Of the damped Hessian, its columns taken in another order: inv(H[order][:, order] + damping) = upper^T upper.

    Attributes:
        order: int64 [n], columns by falling diagonal: the inputs that matter most come first, while most others can still make up for them
            (the act-order of GPTQ's reference code).
        upper: float32 [n, n], upper triangular.
        damping: what was added to the diagonal, in parts of its mean.
    """

    order: NDArray[np.int64]
    upper: Array
    damping: float

    def solve(self, products: Array) -> Array:
        """products inv(H + damping), [n_rows, n] each, in the original order of columns."""
        solved = np.empty_like(products)
        solved[:, self.order] = products[:, self.order] @ self.upper.T @ self.upper
        return solved


def damped(hessian: Array, damping: float) -> Array:
    """A copy of hessian [n, n] with damping * mean(diagonal) added to its diagonal."""
    result = hessian.copy()
    result[np.diag_indices(len(result))] += np.float32(damping * np.mean(result.diagonal(), dtype=np.float64))
    return result


def factorize(hessian: Array, damping: float) -> InverseFactor:
    """The factor of the inverse. With J reversing the order, J H J = L L^T gives upper = J inv(L) J.

    Where the damped matrix is still singular in float32, damping is raised tenfold, a few times; `damping` of the result tells.

    Raises:
        InvalidRequestError: it stays singular: the inputs are all zero, or damaged.
    """
    order = np.argsort(-hessian.diagonal(), kind="stable")
    for _ in range(_ATTEMPTS):
        reverse = order[::-1]
        try:
            lower = np.linalg.cholesky(damped(hessian, damping)[np.ix_(reverse, reverse)])
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        _invert_lower(lower)
        return InverseFactor(order, np.ascontiguousarray(lower[::-1, ::-1]), damping)
    raise InvalidRequestError("the Hessian of the inputs is singular even with much damping; give a longer calibration text")


def _invert_lower(matrix: Array) -> None:
    """In place: inv([[A, 0], [B, C]]) = [[inv(A), 0], [-inv(C) B inv(A), inv(C)]]."""
    n = len(matrix)
    if n <= _LEAF:
        matrix[:] = np.linalg.inv(matrix.astype(np.float64))
        return
    half = n // 2
    a, b, c = matrix[:half, :half], matrix[half:, :half], matrix[half:, half:]
    _invert_lower(a)
    _invert_lower(c)
    b[:] = -(c @ b @ a)
