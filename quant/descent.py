"""Coordinate descent on scales and codes, after GPTQ: each is set to its best value while all others stay, again and again.

With the residual R = W - Q of weights W [n_rows, n] and the Hessian H, the error of a row is r H r^T. Its slope is G = R H, so that

    a code       is best where the weight's value is nearest to   q_i + G_i / H_ii
    a scale      moves by   <l, G> / (l H l^T), l the levels of its group's codes; with an offset, both by the 2 x 2 system of l and 1

(QuantEase, Behdin et al. 2023, arXiv 2309.01885, for the codes; the scales are its least squares over one group.) A step never raises the
error, except by what rounding the scale to its storage takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from edgelm.quant.grid import Grid
from edgelm.quant.levels import levels_of, nearest
from edgelm.quant.row_threads import RowThreads

_BLOCK = 64
_PASSES = 2  # over the codes of a block, before the next block's slope is computed

Array = NDArray[np.float32]
Codes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Block:
    """Some columns of the matrix on their way."""

    columns: slice
    hessian: Array  # [n, n], of these columns alone
    grid: Grid
    codes: Codes  # [n_rows, n]


def descend(weights: Array, hessian: Array, grid: Grid, codes: Codes, n_sweeps: int, threads: RowThreads) -> tuple[Grid, Codes]:
    """A grid and codes uint8 [n_rows, n_columns] of less error than the given ones.

    Args:
        weights: float32 [n_rows, n_columns].
        hessian: float32 [n_columns, n_columns], damped, so that no diagonal element is 0.
        n_sweeps: how often every scale and code is looked at.
    """
    n_columns = weights.shape[1]
    step = max(_BLOCK, grid.format.block.n_elements)
    residual: Array = weights - grid.values(codes)
    blocks = []
    for start in range(0, n_columns, step):
        columns = slice(start, min(start + step, n_columns))
        square = np.ascontiguousarray(hessian[columns, columns])
        blocks.append(_Block(columns, square, grid.columns(columns.start, columns.stop), np.ascontiguousarray(codes[:, columns])))
    for _ in range(n_sweeps):
        for i, block in enumerate(blocks):
            moved = _refit_scales(block, _slope(residual, hessian, block), threads)
            residual[:, block.columns] += block.grid.values(block.codes) - moved.grid.values(block.codes)
            blocks[i] = _choose_codes(moved, residual, _slope(residual, hessian, block), threads)
    return Grid.joined([block.grid for block in blocks]), np.concatenate([block.codes for block in blocks], axis=1)


def _slope(residual: Array, hessian: Array, block: _Block) -> Array:
    """G = R H of the block's columns, [n_rows, n]."""
    slope: Array = residual @ hessian[:, block.columns]
    return slope


def _refit_scales(block: _Block, slope: Array, threads: RowThreads) -> _Block:
    grid, levels = block.grid, levels_of(block.grid.format).values
    scales = grid.scales.copy()
    offsets = np.zeros_like(scales) if grid.offsets is None else grid.offsets.copy()

    def kernel(rows: slice) -> None:
        _move_scales(slope[rows], block.hessian, block.codes[rows], levels, grid.offsets is not None, scales[rows], offsets[rows])

    threads.run(kernel, len(slope))
    snapped = grid.format.snap(grid, scales, None if grid.offsets is None else offsets)
    return _Block(block.columns, block.hessian, snapped, block.codes)


def _choose_codes(block: _Block, residual: Array, slope: Array, threads: RowThreads) -> _Block:
    """The block with better codes; the residual follows them."""
    grid, levels = block.grid, levels_of(block.grid.format)
    offsets = np.zeros_like(grid.scales) if grid.offsets is None else grid.offsets
    before, codes = grid.values(block.codes), block.codes.copy()

    def kernel(rows: slice) -> None:
        _move_codes(slope[rows], block.hessian, grid.scales[rows], offsets[rows], levels.values, levels.middles, codes[rows])

    threads.run(kernel, len(slope))
    residual[:, block.columns] += before - grid.values(codes)
    return _Block(block.columns, block.hessian, grid, codes)


@numba.njit(nogil=True, cache=True, fastmath={"contract", "arcp", "nsz", "reassoc"})
def _move_scales(slope, hessian, codes, levels, has_offset, scales, offsets):  # type: ignore[no-untyped-def]
    """Scales and offsets [n_rows, n_groups] to their optimum, group by group; the slope follows for the groups to come."""
    size = codes.shape[1] // scales.shape[1]
    change = np.empty(size, np.float32)
    for row in range(codes.shape[0]):
        for group in range(scales.shape[1]):
            first = group * size
            ll, l1, n, lg, g1 = np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for i in range(first, first + size):
                with_level, with_one = np.float32(0), np.float32(0)
                for j in range(first, first + size):
                    with_level += hessian[i, j] * levels[codes[row, j]]
                    with_one += hessian[i, j]
                level = levels[codes[row, i]]
                ll += level * with_level
                l1 += level * with_one
                n += with_one
                lg += level * slope[row, i]
                g1 += slope[row, i]
            scale, offset = np.float32(0), np.float32(0)
            if has_offset:
                determinant = ll * n - l1 * l1
                if determinant > np.float32(1e-5) * ll * n:  # else the group has one code only, and scale and offset cannot be told apart
                    scale, offset = (lg * n - g1 * l1) / determinant, (g1 * ll - lg * l1) / determinant
            elif ll > 0:
                scale = lg / ll
            scales[row, group] += scale
            offsets[row, group] += offset
            for i in range(size):
                change[i] = scale * levels[codes[row, first + i]] + offset
            for i in range(size):
                for j in range(first + size, codes.shape[1]):
                    slope[row, j] -= change[i] * hessian[first + i, j]


@numba.njit(nogil=True, cache=True, fastmath={"contract", "arcp", "nsz"})
def _move_codes(slope, hessian, scales, offsets, levels, middles, codes):  # type: ignore[no-untyped-def]
    size = codes.shape[1] // scales.shape[1]
    for row in range(codes.shape[0]):
        g = slope[row]
        for _ in range(_PASSES):
            for i in range(codes.shape[1]):
                scale, offset = scales[row, i // size], offsets[row, i // size]
                if scale == 0:
                    continue
                value = scale * levels[codes[row, i]] + offset
                code = nearest((value + g[i] / hessian[i, i] - offset) / scale, levels, middles)
                if code != codes[row, i]:
                    change = scale * (levels[code] - levels[codes[row, i]])
                    codes[row, i] = code
                    for j in range(len(g)):
                        g[j] -= change * hessian[i, j]
