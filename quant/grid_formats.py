"""Each block format as a grid: its levels, and how scales and offsets go into the fields of a block and out of them.

The plain formats of 32 elements store a float16 scale (and offset) per group; those of 256 elements a float16 step per block, and whole
multiples of it per group. llama.cpp decodes steps of either sign, so wishes may have either sign; but where the multiples cannot be
negative (Q4_K, Q5_K), all scales of one block have the same sign, and so have all its offsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import UnsupportedModelError
from edgelm.quant.block_format import BlockFormat, Blocks, Columns, Values, column
from edgelm.quant.blocks import IQ4_NL, IQ4_XS, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0
from edgelm.quant.grid import GridFormat, ScaleFields
from edgelm.quant.grid_steps import choose_step, find_step, whole_multiples
from edgelm.quant.k_quants import pack_iq4_xs_scales, pack_scales_and_mins, unpack_iq4_xs_scales, unpack_scales_and_mins
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


def _no_steps(scales: Values, offsets: Values, other: Values) -> Columns:  # noqa: ARG001
    return {}


def _read_scale(blocks: Blocks) -> tuple[Values, None]:
    return column(blocks, "d"), None


def _read_scale_and_offset(blocks: Blocks) -> tuple[Values, Values]:
    return column(blocks, "d"), column(blocks, "m")


def _store_d(steps: Columns, scales: Values, offsets: Values) -> Columns:  # noqa: ARG001
    return {"d": scales[:, 0].astype(np.float16)}


def _store_d_and_m(steps: Columns, scales: Values, offsets: Values) -> Columns:  # noqa: ARG001
    return {"d": scales[:, 0].astype(np.float16), "m": offsets[:, 0].astype(np.float16)}


# -- 256 elements, w = d * sc * level: a signed whole number per group --------------------------------------------------------------------


def _choose_q6_k(scales: Values, offsets: Values, weights: Values) -> Columns:  # noqa: ARG001
    return {"d": choose_step(scales, weights, -128, 127)}


def _find_q6_k(scales: Values, offsets: Values, tolerances: Values) -> Columns:  # noqa: ARG001
    return {"d": find_step(scales, np.zeros_like(scales), -128, 127)}


def _store_q6_k(steps: Columns, scales: Values, offsets: Values) -> Columns:  # noqa: ARG001
    return {**steps, "scales": whole_multiples(scales, steps["d"], -128, 127).astype(np.int8)}


def _read_q6_k(blocks: Blocks) -> tuple[Values, None]:
    return column(blocks, "d") * blocks["scales"], None


def _choose_iq4_xs(scales: Values, offsets: Values, weights: Values) -> Columns:  # noqa: ARG001
    return {"d": choose_step(scales, weights, -32, 31)}


def _find_iq4_xs(scales: Values, offsets: Values, tolerances: Values) -> Columns:  # noqa: ARG001
    return {"d": find_step(scales, np.zeros_like(scales), -32, 31)}


def _store_iq4_xs(steps: Columns, scales: Values, offsets: Values) -> Columns:  # noqa: ARG001
    low, high = pack_iq4_xs_scales(whole_multiples(scales, steps["d"], -32, 31).astype(np.int8))
    return {**steps, "scales_l": low, "scales_h": high}


def _read_iq4_xs(blocks: Blocks) -> tuple[Values, None]:
    return column(blocks, "d") * unpack_iq4_xs_scales(blocks["scales_l"], blocks["scales_h"]), None


# -- 256 elements, w = d * sc * level - dmin * mn: two whole numbers 0 .. 63 per group ----------------------------------------------------


def _choose_with_mins(middle: float, scales: Values, offsets: Values, weights: Values) -> Columns:
    d = choose_step(scales, weights, 0, 63)
    mins = _mins(middle, scales, offsets, d, whole_multiples(scales, d, 0, 63))
    return {"d": d, "dmin": choose_step(mins, weights, 0, 63)}


def _find_with_mins(scales: Values, offsets: Values, tolerances: Values) -> Columns:
    return {"d": find_step(scales, np.zeros_like(scales), 0, 63), "dmin": find_step(-offsets, tolerances, 0, 63)}


def _store_with_mins(middle: float, steps: Columns, scales: Values, offsets: Values) -> Columns:
    sc = whole_multiples(scales, steps["d"], 0, 63)
    mn = whole_multiples(_mins(middle, scales, offsets, steps["d"], sc), steps["dmin"], 0, 63)
    return {**steps, "scales": pack_scales_and_mins(sc.astype(np.uint8), mn.astype(np.uint8))}


def _mins(middle: float, scales: Values, offsets: Values, d: Values, sc: Values) -> Values:
    """What is to be subtracted so that the middle level, which the rounded scale moves, stays where it was wished."""
    mins: Values = d.astype(np.float64)[:, None] * sc * middle - scales * middle - offsets
    return mins


def _read_with_mins(blocks: Blocks) -> tuple[Values, Values]:
    sc, mn = unpack_scales_and_mins(blocks["scales"])
    return column(blocks, "d") * sc, -(column(blocks, "dmin") * mn)


# -- the table -------------------------------------------------------------------------------------------------------------------------

_D = ScaleFields(("d",), False, _read_scale, _no_steps, _no_steps, _store_d)
_D_AND_M = ScaleFields(("d", "m"), True, _read_scale_and_offset, _no_steps, _no_steps, _store_d_and_m)
_SIGNED_8 = ScaleFields(("d", "scales"), False, _read_q6_k, _choose_q6_k, _find_q6_k, _store_q6_k)
_SIGNED_6 = ScaleFields(("d", "scales_l", "scales_h"), False, _read_iq4_xs, _choose_iq4_xs, _find_iq4_xs, _store_iq4_xs)


def _d_and_dmin(middle: float) -> ScaleFields:
    names = ("d", "dmin", "scales")
    choose, store = partial(_choose_with_mins, middle), partial(_store_with_mins, middle)
    return ScaleFields(names, True, _read_with_mins, choose, _find_with_mins, store)


GRID_FORMATS: Mapping[str, GridFormat] = MappingProxyType(
    {
        f.block.name: f
        for f in (
            GridFormat(Q4_0, _whole_numbers(-8, 7), 32, _D),
            GridFormat(Q4_1, _whole_numbers(0, 15), 32, _D_AND_M),
            GridFormat(Q5_0, _whole_numbers(-16, 15), 32, _D),
            GridFormat(Q5_1, _whole_numbers(0, 31), 32, _D_AND_M),
            GridFormat(Q8_0, _whole_numbers(-128, 127), 32, _D),
            GridFormat(IQ4_NL, IQ4_TABLE, 32, _D),
            GridFormat(Q4_K, _whole_numbers(0, 15), 32, _d_and_dmin(7.5)),
            GridFormat(Q5_K, _whole_numbers(0, 31), 32, _d_and_dmin(15.5)),
            GridFormat(Q6_K, _whole_numbers(-32, 31), 16, _SIGNED_8),
            GridFormat(IQ4_XS, IQ4_TABLE, 32, _SIGNED_6),
        )
    }
)
