"""Weighted search of scales and offsets: of many candidates per group, the one whose codes leave the least weighted error.

For codes q of a candidate, the scale s (and offset o) that minimise E = sum_j h_j (w_j - s l(q_j) - o)^2 are closed-form least squares:

    without offset   s = <w, l> / <l, l>,  E = <w, w> - <w, l>^2 / <l, l>            with <a, b> = sum_j h_j a_j b_j
    with offset      s = (<1, 1><w, l> - <1, l><w, 1>) / (<1, 1><l, l> - <1, l>^2),  o = (<w, 1> - s <1, l>) / <1, 1>

so that a candidate is scored without computing its error weight by weight. The importance h of an input channel is the mean of its square
(the diagonal of X X^T), as the layer's output error sum_t (sum_j dw_j x_tj)^2 has it where inputs are uncorrelated. Where no better method
follows, it is multiplied by sqrt(sigma^2 + w_j^2), sigma^2 the row's mean square, as llama.cpp's quantizer does: large weights then count
for more, which stands in for what the uncorrelated view leaves out.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from edgelm.quant.grid import Grid, GridFormat
from edgelm.quant.levels import levels_of, nearest

# Candidates for the largest weight's place, as a multiple of the outermost level: from clipping it to leaving room.
_SPREAD = {16: (0.7, 1.3, 19), 32: (0.8, 1.15, 15), 64: (0.85, 1.1, 11), 256: (120 / 128, 1.0, 9)}
# Candidates for each end of a range with offset, in parts of the range by which it is drawn in.
_DRAWN_IN = {16: (-0.02, 0.1, 7), 32: (-0.01, 0.05, 7)}
_TINY = np.float32(1e-20)  # weights, or ranges of them, that no format can tell from 0; far from where 1 / x overflows


def search_scales(weights: NDArray[np.float32], importance: NDArray[np.float32], grid_format: GridFormat) -> Grid:
    """The grid of least weighted error, rounded to what the format can store.

    Args:
        weights: float32 [n_rows, n_columns], finite.
        importance: float32 [n_columns], or [n_rows, n_columns]; 0 or more.

    Raises:
        InvalidRequestError: a scale is too large for the format.
    """
    shape = (weights.shape[0], weights.shape[1] // grid_format.group_size)
    scales, offsets, curvature = (np.zeros(shape, np.float32) for _ in range(3))
    levels, size = levels_of(grid_format), grid_format.group_size
    h, n_levels = _normalized(importance), len(levels.values)
    if grid_format.has_offset:
        ends = np.linspace(*_DRAWN_IN[n_levels]).astype(np.float32)
        _with_offset(weights, h, size, n_levels, ends, scales, offsets, curvature)
        return grid_format.round(scales, offsets, curvature)
    factors = np.linspace(*_SPREAD[n_levels]).astype(np.float32)
    _without_offset(weights, h, size, levels.values, levels.table, factors, scales, curvature)
    return grid_format.round(scales, None, curvature)


def _normalized(importance: NDArray[np.float32]) -> NDArray[np.float32]:
    """In parts of the row's largest, [1 or n_rows, n_columns], so that no sum overflows or vanishes."""
    rows = np.atleast_2d(importance)
    largest = rows.max(axis=1, keepdims=True)
    result = np.zeros(rows.shape, np.float32)
    np.divide(rows, largest, out=result, where=largest > 0)
    return result


def emphasized(weights: NDArray[np.float32], squares: NDArray[np.float32]) -> NDArray[np.float32]:
    """Importance h_j sqrt(sigma^2 + w_ij^2), float32 [n_rows, n_columns], of weights of that shape and mean squares h [n_columns]."""
    squared = np.square(weights, dtype=np.float64)
    importance: NDArray[np.float32] = (squares * np.sqrt(squared.mean(axis=1, keepdims=True) + squared)).astype(np.float32)
    return importance


@numba.njit(nogil=True, cache=True, fastmath={"contract", "arcp", "nsz"})
def _without_offset(weights, importance, size, levels, table, factors, scales, curvature):  # type: ignore[no-untyped-def]
    """Both signs of the scale are tried, for the levels reach further on one side of 0 than on the other."""
    for row in range(weights.shape[0]):
        h_row = importance[row % importance.shape[0]]
        for group in range(scales.shape[1]):
            w = weights[row, group * size : (group + 1) * size]
            h = h_row[group * size : (group + 1) * size]
            largest = np.float32(0)
            for j in range(size):
                if abs(w[j]) > abs(largest):
                    largest = w[j]
            if abs(largest) < _TINY:
                continue
            best_wl, best_ll = np.float32(0), np.float32(0)
            for sign in (np.float32(1), np.float32(-1)):
                for factor in factors:
                    inverse = sign * factor * levels[0] / largest
                    wl, ll = np.float32(0), np.float32(0)
                    for j in range(size):
                        level = levels[nearest(w[j] * inverse, levels, table)]
                        wl += h[j] * w[j] * level
                        ll += h[j] * level * level
                    # <w, l>^2 / <l, l> of both, without the division, whose rounding would decide between signs that are the same.
                    if ll > 0 and (best_ll == 0 or wl * wl * best_ll > best_wl * best_wl * ll):
                        best_wl, best_ll = wl, ll
            if best_ll > 0:
                scales[row, group], curvature[row, group] = best_wl / best_ll, best_ll
            else:  # no importance at all: as good as any
                scales[row, group] = largest / levels[0]


@numba.njit(nogil=True, cache=True, fastmath={"contract", "arcp", "nsz"})
def _with_offset(weights, importance, size, n_levels, ends, scales, offsets, curvature):  # type: ignore[no-untyped-def]
    top = np.float32(n_levels - 1)
    for row in range(weights.shape[0]):
        h_row = importance[row % importance.shape[0]]
        for group in range(scales.shape[1]):
            w = weights[row, group * size : (group + 1) * size]
            h = h_row[group * size : (group + 1) * size]
            low, high = w.min(), w.max()
            reach = high - low
            scales[row, group], offsets[row, group] = reach / top, low
            if reach < _TINY:
                continue
            best = np.float32(np.inf)
            for below in ends:
                for above in ends:
                    start = below * reach
                    inverse = top / (reach - above * reach - start)
                    n, l1, ll = np.float32(0), np.float32(0), np.float32(0)
                    w1, wl, ww = np.float32(0), np.float32(0), np.float32(0)
                    for j in range(size):
                        x = w[j] - low  # sums of large weights that differ little would lose what they differ by
                        code = np.floor(min(max((x - start) * inverse, np.float32(0)), top) + np.float32(0.5))
                        n += h[j]
                        l1 += h[j] * code
                        ll += h[j] * code * code
                        w1 += h[j] * x
                        wl += h[j] * x * code
                        ww += h[j] * x * x
                    determinant = n * ll - l1 * l1
                    if determinant > 0:
                        scale = (n * wl - l1 * w1) / determinant
                        offset = (w1 - scale * l1) / n
                        error = ww - scale * wl - offset * w1
                        if error < best:
                            best = error
                            scales[row, group], offsets[row, group], curvature[row, group] = scale, low + offset, determinant / n
