"""Coordinate descent on scales and codes, after GPTQ: each is set to its best value while all others stay, again and again.

With the residual R = W - Q of weights W [n_rows, n] and the Hessian H, the error of a row is r H r^T. Its slope is G = R H, so that

    a code       is best where the weight's value is nearest to   q_i + G_i / H_ii
    a scale      moves by   <l, G> / (l H l^T), l the levels of its group's codes; with an offset, both by the 2 x 2 system of l and 1

(QuantEase, Behdin et al. 2023, arXiv 2309.01885, for the codes; the scales are its least squares over one group.) What is stored is a
rounded scale; a row keeps the scales that it had in a block of columns where the rounded new ones would raise its error. So no step does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from edgelm.quant.grid import Grid
from edgelm.quant.levels import levels_of, nearest

_BLOCK = 64
_PASSES = 2  # over the codes of a block, before the next block's slope is computed

Array = NDArray[np.float32]
Codes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Block:
    """Some columns of the matrix on their way.

    Attributes:
        columns: which.
        hessian: float32 [n, n], of these columns alone.
        grid, codes: of these columns; codes uint8 [n_rows, n].
        values: float32 [n_rows, n], what they stand for.
    """

    columns: slice
    hessian: Array
    grid: Grid
    codes: Codes
    values: Array


def descend(weights: Array, hessian: Array, grid: Grid, codes: Codes, n_sweeps: int) -> tuple[Grid, Codes]:
    """A grid and codes uint8 [n_rows, n_columns] of less error than the given ones; takes the memory of three such matrices of float32.

    Args:
        weights: float32 [n_rows, n_columns].
        hessian: float32 [n_columns, n_columns], damped, so that no diagonal element is 0.
        n_sweeps: how often every scale and code is looked at.
    """
    residual: Array = weights - grid.values(codes)
    blocks = list(_split(hessian, grid, codes))
    for _ in range(n_sweeps):
        for i, block in enumerate(blocks):
            slope = residual @ hessian[:, block.columns]
            blocks[i] = _choose_codes(_refit_scales(block, slope), slope)
            residual[:, block.columns] += block.values - blocks[i].values
    return Grid.joined([block.grid for block in blocks]), np.concatenate([block.codes for block in blocks], axis=1)


def _split(hessian: Array, grid: Grid, codes: Codes) -> Iterator[_Block]:
    n_columns = len(hessian)
    step = max(_BLOCK, grid.format.block.n_elements)
    for start in range(0, n_columns, step):
        columns = slice(start, min(start + step, n_columns))
        part, own = grid.columns(columns.start, columns.stop), np.ascontiguousarray(codes[:, columns])
        yield _Block(columns, np.ascontiguousarray(hessian[columns, columns]), part, own, part.values(own))


def _refit_scales(block: _Block, slope: Array) -> _Block:
    """The block with better scales, of the slope [n_rows, n], which follows."""
    grid, levels = block.grid, levels_of(block.grid.format).values
    scales = grid.scales.copy()
    offsets = np.zeros_like(scales) if grid.offsets is None else grid.offsets.copy()
    _move_scales(slope.copy(), block.hessian, levels[block.codes], grid.offsets is not None, scales, offsets)
    snapped = grid.format.snap(grid, scales, None if grid.offsets is None else offsets)
    change = snapped.values(block.codes) - block.values
    slope_change = change @ block.hessian
    is_better = np.einsum("ij,ij->i", change, slope_change - 2 * slope) < 0
    slope -= np.where(is_better[:, None], slope_change, np.float32(0))
    values = block.values + np.where(is_better[:, None], change, np.float32(0))
    return replace(block, grid=_chosen(is_better, snapped, grid), values=values)


def _chosen(first: NDArray[np.bool_], one: Grid, other: Grid) -> Grid:
    """The rows of one grid where `first` [n_rows] says so, of the other elsewhere."""

    def choose(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        return np.where(first.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    offsets = None if one.offsets is None or other.offsets is None else choose(one.offsets, other.offsets)
    fields = {name: choose(items, other.fields[name]) for name, items in one.fields.items()}
    return Grid(one.format, choose(one.scales, other.scales), offsets, fields)


def _choose_codes(block: _Block, slope: Array) -> _Block:
    """The block with better codes, of the slope [n_rows, n], which follows."""
    grid, levels, codes = block.grid, levels_of(block.grid.format), block.codes.copy()
    _move_codes(slope, block.hessian, grid.scales, levels.values, levels.table, codes)
    return replace(block, codes=codes, values=grid.values(codes))


@numba.njit(nogil=True, cache=True, fastmath={"contract", "arcp", "nsz"})
def _move_scales(slope, hessian, levels, has_offset, scales, offsets):  # type: ignore[no-untyped-def]
    """Scales and offsets [n_rows, n_groups] to their optimum for the codes' levels [n_rows, n], group by group.

    The slope [n_rows, n] follows for the groups to come.
    """
    n_rows, n = levels.shape
    size = n // scales.shape[1]
    lh = np.empty(size, np.float32)
    for group in range(n // size):
        first, end = group * size, (group + 1) * size
        ones = hessian[first:end, first:end].sum()
        for row in range(n_rows):
            level, g = levels[row, first:end], slope[row, first:end]
            lh[:] = 0
            for i in range(size):
                h = hessian[first + i, first:end]
                for j in range(size):
                    lh[j] += level[i] * h[j]
            ll, l1, lg, g1 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for j in range(size):
                ll += level[j] * lh[j]
                l1 += lh[j]
                lg += level[j] * g[j]
                g1 += g[j]
            scale, offset = np.float32(0), np.float32(0)
            if has_offset:
                determinant = ll * ones - l1 * l1
                if determinant > np.float32(1e-5) * ll * ones:
                    scale, offset = (lg * ones - g1 * l1) / determinant, (g1 * ll - lg * l1) / determinant
                elif ones > 0:  # the group has one code only, and scale and offset cannot be told apart
                    offset = g1 / ones
            elif ll > 0:
                scale = lg / ll
            scales[row, group] += scale
            offsets[row, group] += offset
            after = slope[row, end:]
            for i in range(size):
                change, h = scale * level[i] + offset, hessian[first + i, end:]
                for j in range(len(after)):
                    after[j] -= change * h[j]


@numba.njit(nogil=True, cache=True, fastmath={"contract", "arcp", "nsz"})
def _move_codes(slope, hessian, scales, levels, table, codes):  # type: ignore[no-untyped-def]
    """Codes [n_rows, n] to the levels nearest to l_i + G_i / (H_ii s), one after the other; the slope follows."""
    n_rows, n = codes.shape
    size = n // scales.shape[1]
    for row in range(n_rows):
        g = slope[row]
        for _ in range(_PASSES):
            for i in range(n):
                scale = scales[row, i // size]
                if scale == 0:
                    continue
                old = codes[row, i]
                code = nearest(levels[old] + g[i] / hessian[i, i] / scale, levels, table)
                if code != old:
                    codes[row, i] = code
                    change, h = scale * (levels[code] - levels[old]), hessian[i]
                    for j in range(n):
                        g[j] -= change * h[j]
