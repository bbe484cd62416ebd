"""GPTQ (Frantar et al. 2022, arXiv 2210.17323) on a grid that was chosen before: act-order with static groups.

Columns are rounded one after the other. With inv(H) = U^T U, the error of column i, e = (w_i - q_i) / U_ii, is made up for by the columns
not yet rounded: w_j -= e U_ij for j > i. Within a block of columns a compiled kernel does so row by row; the columns after the block follow
in one matrix product.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from edgelm.quant.grid import Grid
from edgelm.quant.hessian import InverseFactor
from edgelm.quant.levels import levels_of, nearest

_BLOCK = 64


def gptq(weights: NDArray[np.float32], factor: InverseFactor, grid: Grid) -> NDArray[np.uint8]:
    """Codes uint8 [n_rows, n_columns] on the grid for weights of that shape; takes the memory of two more such matrices of float32."""
    n_columns = weights.shape[1]
    levels, group = levels_of(grid.format), factor.order // grid.format.group_size
    offsets = np.zeros_like(grid.scales) if grid.offsets is None else grid.offsets
    work = np.ascontiguousarray(weights[:, factor.order])
    codes = np.empty(weights.shape, np.uint8)
    for start in range(0, n_columns, _BLOCK):
        block, after = slice(start, min(start + _BLOCK, n_columns)), slice(start + _BLOCK, n_columns)
        errors, upper = np.ascontiguousarray(work[:, block]), np.ascontiguousarray(factor.upper[block, block])
        found = np.empty(errors.shape, np.uint8)
        _round_block(errors, upper, group[block], grid.scales, offsets, levels.values, levels.table, levels.zero, found)
        codes[:, factor.order[block]] = found
        work[:, after] -= errors @ factor.upper[block, after]
    return codes


@numba.njit(nogil=True, cache=True, fastmath={"contract", "arcp", "nsz"})
def _round_block(work, upper, group, scales, offsets, levels, table, zero, codes):  # type: ignore[no-untyped-def]
    """Codes of a block of columns; `work` [n_rows, n] holds the weights before and the errors e afterwards."""
    for row in range(work.shape[0]):
        w = work[row]
        for i in range(len(w)):
            scale, offset = scales[row, group[i]], offsets[row, group[i]]
            code = nearest((w[i] - offset) / scale, levels, table) if scale != 0 else zero
            codes[row, i] = code
            error = (w[i] - (scale * levels[code] + offset)) / upper[i, i]
            w[i] = error
            for j in range(i + 1, len(w)):
                w[j] -= error * upper[i, j]
