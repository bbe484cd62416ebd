"""The curvature of a linear layer's output error, H = X X^T / n, and its inverse as GPTQ takes it.

The output error of a row with weight error d is sum_t (d . x_t)^2 = n d H d^T, which is what quantizing should keep small. For 8192 inputs
each of these matrices takes 268 MB in float32, so whatever can be computed in place is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.row_threads import RowThreads

Array = NDArray[np.float32]
_ATTEMPTS = 4  # each with ten times the damping of the one before
_LEAF = 128  # columns below which a matrix is factored at once, in float64
_COLUMNS = 512  # of a triangular product that are computed at a time
_STRIP = 128  # rows, or columns, of a product that are computed at a time


@dataclass(frozen=True, eq=False)
class InverseFactor:
    """Of the damped Hessian, its columns taken in another order: inv(H[order][:, order]) = upper^T upper.

    Attributes:
        order: int64 [n], columns by falling diagonal: the inputs that matter most come first, while most others can still make up for them
            (the act-order of GPTQ's reference code).
        upper: float32 [n, n], upper triangular.
        damping: what was added to the Hessian's diagonal, in parts of its mean.
    """

    order: NDArray[np.int64]
    upper: Array
    damping: float

    def divide(self, products: Array) -> Array:
        """products inv(H), [n_rows, n], columns in their original order."""
        x = products[:, self.order]
        strips = [slice(start, start + _COLUMNS) for start in range(0, x.shape[1], _COLUMNS)]
        for columns in strips:  # upper^T, in place: below the strip it is 0, and what is left of the strip is no longer needed
            x[:, columns] = x[:, columns.start :] @ self.upper[columns, columns.start :].T
        for columns in reversed(strips):
            x[:, columns] = x[:, : columns.stop] @ self.upper[: columns.stop, columns]
        result = np.empty_like(x)
        result[:, self.order] = x
        return result


def factorize(hessian: Array, damping: float, threads: RowThreads) -> InverseFactor:
    """Damp the Hessian [n, n] and factor the inverse. With J reversing the order, J H J = L L^T gives upper = J inv(L) J.

    `hessian` is changed in place: damping * mean(diagonal) is added to its diagonal. Where it is still singular in float32, damping is
    raised tenfold, a few times; `damping` of the result tells. Besides the Hessian and the factor, memory holds strips of a matrix.

    Raises:
        InvalidRequestError: the inputs are all zero, or it stays singular.
    """
    diagonal = hessian.diagonal().copy()
    mean = float(np.mean(diagonal, dtype=np.float64))
    if not mean > 0:
        raise InvalidRequestError("the inputs of the layer are zero on the whole calibration text; give another text, or check the weights")
    order = np.argsort(-diagonal, kind="stable")
    reverse = order[::-1]
    factor = np.empty_like(hessian)

    def reorder(rows: slice) -> None:
        factor[rows] = hessian[reverse[rows]][:, reverse]

    for _ in range(_ATTEMPTS):
        np.fill_diagonal(hessian, diagonal + np.float32(damping * mean))
        threads.run(reorder, len(hessian), _STRIP)
        try:
            _invert_factor(factor, threads)
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        _turn_around(factor)
        return InverseFactor(order, factor, damping)
    raise InvalidRequestError("the Hessian of the layer's inputs is singular even with much damping; give a longer calibration text")


def _invert_factor(a: Array, threads: RowThreads) -> None:
    """a = L L^T becomes inv(L), in place, of which only the lower triangle is read.

    For a = [[A, .], [B, C]] it is [[X, 0], [-Z Y X, Z]], with X of A, Y = B X^T and Z of C - Y Y^T.
    """
    n = len(a)
    if n <= _LEAF:
        a[:] = np.tril(np.linalg.inv(np.linalg.cholesky(a.astype(np.float64))))
        if not np.isfinite(a).all():
            raise np.linalg.LinAlgError("not finite")
        return
    half = n // 2
    a11, a12, a21, a22 = a[:half, :half], a[:half, half:], a[half:, :half], a[half:, half:]
    a12[:] = 0
    _invert_factor(a11, threads)

    def y(rows: slice) -> None:
        a21[rows] = a21[rows] @ a11.T

    def schur_complement(rows: slice) -> None:
        a22[rows, : rows.stop] -= a21[rows] @ a21[: rows.stop].T

    def y_x(rows: slice) -> None:
        a21[rows] = a21[rows] @ a11

    def z_y_x(columns: slice) -> None:
        a21[:, columns] = -(a22 @ a21[:, columns])

    threads.run(y, n - half, _STRIP)
    threads.run(schur_complement, n - half, _STRIP)
    _invert_factor(a22, threads)
    threads.run(y_x, n - half, _STRIP)
    threads.run(z_y_x, half, _STRIP)


def _turn_around(a: Array) -> None:
    """a[i, j] becomes a[n - 1 - i, n - 1 - j], in place."""
    flat = a.reshape(-1)
    for start in range(0, flat.size // 2, len(a)):
        end = min(start + len(a), flat.size // 2)
        first, last = flat[start:end], flat[flat.size - end : flat.size - start]
        first[:], last[:] = last[::-1].copy(), first[::-1].copy()
