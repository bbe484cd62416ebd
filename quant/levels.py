"""The levels of a format as compiled kernels take them."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from edgelm.quant.grid import GridFormat
from edgelm.quant.nibbles import NEAREST_IQ4


@dataclass(frozen=True, eq=False)
class Levels:
    """Arguments of `nearest`.

    Attributes:
        values: float32 [n_levels], ascending.
        table: uint8, the code nearest to x by ceil(2 x) + 256, |x| <= 128; empty where the levels are whole numbers one after the other.
        zero: the code of the level nearest to 0.
    """

    values: NDArray[np.float32]
    table: NDArray[np.uint8]
    zero: int


def levels_of(grid_format: GridFormat) -> Levels:
    """The levels of a format."""
    values = grid_format.levels.copy()  # the declared ones are read-only, for which kernels would be compiled once more
    table = np.empty(0, np.uint8) if grid_format.evenly_spaced else NEAREST_IQ4.copy()
    return Levels(values, table, int(np.abs(values).argmin()))


@numba.njit(nogil=True, cache=True, inline="always")
def nearest(x, levels, table):  # type: ignore[no-untyped-def]
    """The code of the level nearest to x."""
    # Compared as numbers first: a float beyond the range of int32 has no defined code.
    if len(table) == 0:
        y = min(max(np.float32(0), x - levels[0]), np.float32(len(levels) - 1))
        return np.int32(y + np.float32(0.5))
    y = min(max(np.float32(-128), x), np.float32(128))
    return np.int32(table[np.int32(np.ceil(y * np.float32(2))) + 256])
