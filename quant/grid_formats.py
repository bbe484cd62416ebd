"""Each block format as a grid: its levels, and how scales and offsets go into the fields of a block and out of them.

The plain formats of 32 elements store a float16 scale (and offset) per group.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import UnsupportedModelError
from edgelm.quant.block_codes import (
    pack_4_bit_codes,
    pack_5_bit_codes,
    pack_8_bit_codes,
    unpack_4_bit_codes,
    unpack_5_bit_codes,
    unpack_8_bit_codes,
)
from edgelm.quant.block_format import BlockFormat, Blocks, Columns, Values, column
from edgelm.quant.blocks import IQ4_NL, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from edgelm.quant.grid import GridFormat
from edgelm.quant.nibbles import IQ4_TABLE


def grid_format(block: BlockFormat) -> GridFormat:
    """The grid of a quantized format.

    Raises:
        UnsupportedModelError: the format has no grid (F32, F16, BF16).
    """
    if block.name not in GRID_FORMATS:
        raise UnsupportedModelError(f"{block.name} has no grid of scales and codes; choose one of {', '.join(GRID_FORMATS)}")
    return GRID_FORMATS[block.name]


def _whole_numbers(first: int, last: int) -> NDArray[np.float32]:
    levels = np.arange(first, last + 1, dtype=np.float32)
    levels.setflags(write=False)
    return levels


# -- 32 elements: float16 per group ------------------------------------------------------------------------------------------------------


def _no_steps(scales: Values, offsets: Values | None, weights: Values | None) -> Columns:  # noqa: ARG001
    return {}


def _read_scale(blocks: Blocks) -> tuple[Values, None]:
    return column(blocks, "d"), None


def _read_scale_and_offset(blocks: Blocks) -> tuple[Values, Values]:
    return column(blocks, "d"), column(blocks, "m")


def _store_floats(steps: Columns, scales: Values, offsets: Values | None) -> Columns:  # noqa: ARG001
    d = {"d": scales[:, 0].astype(np.float16)}
    return d if offsets is None else {**d, "m": offsets[:, 0].astype(np.float16)}


_CODES_4 = (unpack_4_bit_codes, pack_4_bit_codes)
_CODES_5 = (unpack_5_bit_codes, pack_5_bit_codes)
_CODES_8 = (unpack_8_bit_codes, pack_8_bit_codes)
_FLOATS = (_no_steps, _store_floats)

GRID_FORMATS: Mapping[str, GridFormat] = MappingProxyType(
    {
        f.block.name: f
        for f in (
            GridFormat(Q4_0, _whole_numbers(-8, 7), 32, False, ("d",), *_CODES_4, _read_scale, *_FLOATS),
            GridFormat(Q4_1, _whole_numbers(0, 15), 32, True, ("d", "m"), *_CODES_4, _read_scale_and_offset, *_FLOATS),
            GridFormat(Q5_0, _whole_numbers(-16, 15), 32, False, ("d",), *_CODES_5, _read_scale, *_FLOATS),
            GridFormat(Q5_1, _whole_numbers(0, 31), 32, True, ("d", "m"), *_CODES_5, _read_scale_and_offset, *_FLOATS),
            GridFormat(Q8_0, _whole_numbers(-128, 127), 32, False, ("d",), *_CODES_8, _read_scale, *_FLOATS),
            GridFormat(IQ4_NL, IQ4_TABLE, 32, False, ("d",), *_CODES_4, _read_scale, *_FLOATS),
        )
    }
)
