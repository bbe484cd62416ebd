"""Block formats as ONNX Runtime's MatMulNBits and GatherBlockQuantized take them, in 4 or 8 bits and without rounding a weight.

    w = (code - 2^(bits - 1)) * scale + offset

MatMulNBits itself computes the first term, with its default zero point. It also takes a zero point for each block, but a whole one,
which the formats with a minimum do not have, or a floating one, for which ONNX Runtime dequantizes the whole matrix in every call
(measured with onnxruntime 1.32: 27 to 50 times the time of a product with one row). So the minimum goes into `offset`, one float32
per block, and the graph adds offset @ (sums of the input over each block), a product of 1/32 of the size.
Formats of more than 4 bits, and those whose codes stand for uneven values, have their whole values in 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError, UnsupportedModelError
from edgelm.quant.block_codes import CODE_LAYOUTS
from edgelm.quant.block_format import BlockFormat, Columns
from edgelm.quant.grid import GridFormat
from edgelm.quant.grid_formats import grid_format
from edgelm.quant.nibbles import Codes


@dataclass(frozen=True)
class NBitsLayout:
    """How a block format is held.

    Attributes:
        bits: of a code, 4 or 8.
        block_size: weights that share a scale, 16 or 32.
        has_offsets: whether blocks have an offset.
    """

    bits: int
    block_size: int
    has_offsets: bool

    def shapes(self, n_rows: int, n_columns: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Shapes of the codes, and of scales and offsets, for a matrix [n_rows, n_columns]."""
        n_blocks = n_columns // self.block_size
        return (n_rows, n_blocks, self.block_size * self.bits // 8), (n_rows, n_blocks)


@dataclass(frozen=True)
class NBits:
    """Some rows of a matrix.

    Attributes:
        layout: how they are held.
        codes: uint8 [n_rows, n_blocks, block_size * bits / 8]; 4-bit codes in pairs, the first in the low nibble.
        scales: float32 [n_rows, n_blocks].
        offsets: float32 [n_rows, n_blocks], or None.
    """

    layout: NBitsLayout
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    offsets: NDArray[np.float32] | None

    @property
    def n_columns(self) -> int:
        """Weights in a row."""
        return int(self.scales.shape[1]) * self.layout.block_size

    def whole_codes(self) -> NDArray[np.uint8]:
        """One code per byte, uint8 [n_rows, n_blocks, block_size]."""
        if self.layout.bits == 8:
            return self.codes
        return np.stack([self.codes & 15, self.codes >> 4], axis=-1).reshape(*self.scales.shape, -1)

    def dequantize(self) -> NDArray[np.float32]:
        """The weights, float32 [n_rows, n_columns]; the format's own values to the last bits of float32."""
        values: NDArray[Any] = (self.whole_codes().astype(np.float32) - 2 ** (self.layout.bits - 1)) * self.scales[..., None]
        if self.offsets is not None:
            values = values + self.offsets[..., None]
        return values.reshape(len(values), -1)


# Formats whose values are whole multiples of a scale within 4 bits take 4, the others 8.
_LAYOUTS: Mapping[str, NBitsLayout] = MappingProxyType(
    {
        "Q4_0": NBitsLayout(4, 32, False),
        "Q4_1": NBitsLayout(4, 32, True),
        "Q5_0": NBitsLayout(8, 32, False),
        "Q5_1": NBitsLayout(8, 32, True),
        "Q8_0": NBitsLayout(8, 32, False),
        "IQ4_NL": NBitsLayout(8, 32, False),
        "Q4_K": NBitsLayout(4, 32, True),
        "Q5_K": NBitsLayout(8, 32, True),
        "Q6_K": NBitsLayout(8, 16, False),
        "IQ4_XS": NBitsLayout(8, 32, False),
    }
)


def nbits_layout(block_format: BlockFormat) -> NBitsLayout | None:
    """How a format is held, or None for F32, F16 and BF16, whose values are no small whole numbers."""
    return _LAYOUTS.get(block_format.name)


def pack_nbits(block_format: BlockFormat, data: NDArray[np.uint8], n_columns: int) -> NBits:
    """Rows of n_columns weights each, `data` uint8 [n_rows * bytes of a row].

    Raises:
        UnsupportedModelError: a format without such a layout.
    """
    layout = nbits_layout(block_format)
    if layout is None:
        raise UnsupportedModelError(f"{block_format.name} weights have no exact form in 4 or 8 bits; ask for one with --requantize q8_0")
    blocks = np.ascontiguousarray(data).reshape(-1).view(block_format.dtype)
    form = grid_format(block_format)
    with np.errstate(invalid="ignore", over="ignore"):  # scales of a damaged file may be infinite; they stay so
        scales, offsets = form.scale_fields.read(blocks)
        if offsets is not None:
            offsets = offsets + _middle(form) * scales
    held, codes = _held(form, layout), CODE_LAYOUTS[block_format.name].unpack(blocks)
    codes = codes + held[0] if form.evenly_spaced else held[codes]
    n_rows = len(blocks) * block_format.n_elements // n_columns
    code_shape, scale_shape = layout.shapes(n_rows, n_columns)
    if layout.bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return NBits(
        layout,
        np.ascontiguousarray(codes).reshape(code_shape),
        np.ascontiguousarray(scales, np.float32).reshape(scale_shape),
        None if offsets is None else np.ascontiguousarray(offsets, np.float32).reshape(scale_shape),
    )


def unpack_nbits(block_format: BlockFormat, weights: NBits) -> NDArray[np.uint8]:
    """The inverse of `pack_nbits`: blocks of the format, uint8 [bytes], that pack to the very same numbers.

    For Q4_0, Q5_0, Q8_0 and IQ4_NL these are the bytes that were packed. In the other formats several blocks pack to the same numbers:
    - Q4_1, Q5_1: an offset is the minimum plus 8 or 16 scales in float32, so a minimum below about 2^-13 of that has lost its last bits;
    - Q6_K, IQ4_XS, Q4_K, Q5_K: a scale is a step times a whole number, and half the step times twice the number is the same. The largest
      whole numbers are taken, which are those of llama.cpp's quantizer; a block whose scales are all 0 has step 0.
    The sign of a zero may change where there are offsets or steps.

    Raises:
        InvalidRequestError: no blocks of the format are found that hold these numbers exactly: they are those of another format or were
            changed, or (Q4_K, Q5_K) minima far smaller than the scales were lost in the offsets' rounding.
    """
    layout = nbits_layout(block_format)
    if layout is None or layout != weights.layout:
        raise InvalidRequestError(f"{weights.layout} is not how {block_format.name} weights are held")
    form = grid_format(block_format)
    held = _held(form, layout)
    codes = np.zeros(256, np.uint8)
    codes[held] = np.arange(len(held))
    blocks = np.empty(weights.scales.size // form.n_groups_per_block, block_format.dtype)
    scale_columns = _scale_columns(form, weights)
    code_columns = CODE_LAYOUTS[block_format.name].pack(codes[weights.whole_codes()].reshape(len(blocks), -1))
    for name, items in {**scale_columns, **code_columns}.items():
        blocks[name] = items
    data = blocks.view(np.uint8)
    if not _same(weights, pack_nbits(block_format, data, weights.n_columns)):
        raise InvalidRequestError(f"no {block_format.name} blocks hold these scales, offsets and codes exactly")
    return data


def _middle(form: GridFormat) -> int:
    """The level in the middle of those that start at 0: codes around it keep the part that meets int8 activations small."""
    return len(form.levels) // 2 if form.has_offset else 0


def _held(form: GridFormat, layout: NBitsLayout) -> Codes:
    """What stands for each of the format's codes, uint8 [n_levels]."""
    held: Codes = (form.levels - _middle(form) + 2 ** (layout.bits - 1)).astype(np.uint8)
    return held


def _scale_columns(form: GridFormat, weights: NBits) -> Columns:
    """The fields of blocks behind scales and offsets."""
    scales = weights.scales.astype(np.float64).reshape(-1, form.n_groups_per_block)
    offsets, tolerances = np.zeros_like(scales), np.zeros_like(scales)
    with np.errstate(invalid="ignore", over="ignore"):  # numbers that no float16 holds are found out afterwards
        if weights.offsets is not None:
            rounded = weights.offsets.reshape(scales.shape)
            offsets, tolerances = rounded - _middle(form) * scales, np.spacing(np.abs(rounded)) / 2
        return form.scale_fields.store(form.scale_fields.find_steps(scales, offsets, tolerances), scales, offsets)


def _same(a: NBits, b: NBits) -> bool:
    if a.offsets is not None and b.offsets is not None and not np.array_equal(a.offsets, b.offsets):
        return False
    return np.array_equal(a.scales, b.scales) and np.array_equal(a.codes, b.codes)
