"""The levels of a format as compiled kernels take them."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from edgelm.quant.grid import GridFormat


@dataclass(frozen=True, eq=False)
class Levels:
    """Arguments of `nearest`.

    Attributes:
        values: float32 [n_levels], ascending.
        middles: float32 [n_levels - 1], halfway between neighbours; empty where the levels are whole numbers one after the other.
        zero: the code of the level nearest to 0.
    """

    values: NDArray[np.float32]
    middles: NDArray[np.float32]
    zero: int


def levels_of(grid_format: GridFormat) -> Levels:
    """The levels of a format."""
    values = grid_format.levels.copy()  # the declared ones are read-only, for which kernels would be compiled once more
    middles = np.empty(0, np.float32) if grid_format.evenly_spaced else ((values[1:] + values[:-1]) / 2).astype(np.float32)
    return Levels(values, middles, int(np.abs(values).argmin()))


@numba.njit(nogil=True, cache=True, inline="always")
def nearest(x, levels, middles):  # type: ignore[no-untyped-def]
    """The code of the level nearest to x."""
    if len(middles) == 0:
        last = len(levels) - 1
        # Compared as numbers first: a float beyond the range of int32 has no defined code.
        y = min(max(np.float32(0), x - levels[0]), np.float32(last))
        return np.int32(y + np.float32(0.5))
    code = np.int32(0)
    for middle in middles:
        code += np.int32(x > middle)
    return code
