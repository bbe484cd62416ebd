"""Block formats as ONNX Runtime's MatMulNBits and GatherBlockQuantized take them, in 4 or 8 bits and without rounding a weight.

    w = (code - 2^(bits - 1)) * scale + offset

MatMulNBits itself computes the first term, with its default zero point. It also takes a zero point for each block, but a whole one,
which the formats with a minimum do not have, or a floating one, for which ONNX Runtime dequantizes the whole matrix in every call
(measured with onnxruntime 1.32: 27 to 50 times the time of a product with one row). So the minimum goes into `offset`, one float32
per block, and the graph adds offset @ (sums of the input over each block), a product of 1/32 of the size.
Formats of more than 4 bits, and those whose codes stand for uneven values, have their whole values in 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import UnsupportedModelError
from edgelm.quant.block_format import BlockFormat, Blocks, Values, column
from edgelm.quant.k_quants import unpack_iq4_xs_scales, unpack_scales_and_mins
from edgelm.quant.nibbles import IQ4_TABLE, Codes, unpack_nibbles

_IQ4_CODES = (IQ4_TABLE + 128).astype(np.uint8)
Split = tuple[Codes, Values, Values | None]  # codes uint8 [n, groups, block_size], scales and offsets float32 [n, groups]


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

    def dequantize(self) -> NDArray[np.float32]:
        """The weights, float32 [n_rows, n_columns]; the format's own values to the last bits of float32."""
        codes = self.codes
        if self.layout.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
        values: NDArray[Any] = (codes.astype(np.float32) - 2 ** (self.layout.bits - 1)) * self.scales[..., None]
        if self.offsets is not None:
            values = values + self.offsets[..., None]
        return values.reshape(len(codes), -1)


def nbits_layout(block_format: BlockFormat) -> NBitsLayout | None:
    """How a format is held, or None for F32, F16 and BF16, whose values are no small whole numbers."""
    row = _FORMATS.get(block_format.name)
    return None if row is None else row[0]


def pack_nbits(block_format: BlockFormat, data: NDArray[np.uint8], n_columns: int) -> NBits:
    """Rows of n_columns weights each, `data` uint8 [n_rows * bytes of a row].

    Raises:
        UnsupportedModelError: a format without such a layout.
    """
    row = _FORMATS.get(block_format.name)
    if row is None:
        raise UnsupportedModelError(f"{block_format.name} weights have no exact form in 4 or 8 bits; ask for one with --requantize q8_0")
    layout, split = row
    blocks = np.ascontiguousarray(data).reshape(-1).view(block_format.dtype)
    with np.errstate(invalid="ignore", over="ignore"):  # scales of a damaged file may be infinite; they stay so
        codes, scales, offsets = split(blocks)
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


# -- one function per format: codes around 8 or 128, and the scale and offset that this makes --------------------------------------------


def _nibbles(blocks: Blocks) -> Codes:
    codes: Codes = unpack_nibbles(blocks["qs"]).reshape(-1, 1, 32)
    return codes


def _five_bits(blocks: Blocks) -> Codes:
    high = np.unpackbits(blocks["qh"].astype("<u4")[:, None].view(np.uint8), axis=1, bitorder="little")
    codes: Codes = _nibbles(blocks) | high[:, None] << 4
    return codes


def _q4_0(blocks: Blocks) -> Split:
    return _nibbles(blocks), column(blocks, "d"), None


def _q4_1(blocks: Blocks) -> Split:
    return _nibbles(blocks), column(blocks, "d"), column(blocks, "m") + 8 * column(blocks, "d")


def _q5_0(blocks: Blocks) -> Split:
    return _five_bits(blocks) + 112, column(blocks, "d"), None


def _q5_1(blocks: Blocks) -> Split:
    # Codes 0 .. 31 are held around their middle, which keeps the part that meets int8 activations small.
    return _five_bits(blocks) + 112, column(blocks, "d"), column(blocks, "m") + 16 * column(blocks, "d")


def _q8_0(blocks: Blocks) -> Split:
    return (blocks["qs"].view(np.uint8) ^ 128)[:, None], column(blocks, "d"), None


def _iq4_nl(blocks: Blocks) -> Split:
    return _IQ4_CODES[_nibbles(blocks)], column(blocks, "d"), None


def _scale_and_min(blocks: Blocks, middle: int) -> tuple[Values, Values]:
    scales, mins = unpack_scales_and_mins(blocks["scales"])
    scale: Values = column(blocks, "d") * scales
    return scale, middle * scale - column(blocks, "dmin") * mins


def _q4_k(blocks: Blocks) -> Split:
    return unpack_nibbles(blocks["qs"].reshape(-1, 4, 32)).reshape(-1, 8, 32), *_scale_and_min(blocks, 8)


def _q5_k(blocks: Blocks) -> Split:
    low = unpack_nibbles(blocks["qs"].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    high = np.unpackbits(blocks["qh"][:, None, :], axis=1, bitorder="little")
    return (low | high << 4) + 112, *_scale_and_min(blocks, 16)


def _q6_k(blocks: Blocks) -> Split:
    low = unpack_nibbles(blocks["ql"].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = blocks["qh"].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return (low | high << 4).reshape(-1, 16, 16) + 96, column(blocks, "d") * blocks["scales"], None


def _iq4_xs(blocks: Blocks) -> Split:
    codes = unpack_nibbles(blocks["qs"].reshape(-1, 8, 16)).reshape(-1, 8, 32)
    return _IQ4_CODES[codes], column(blocks, "d") * unpack_iq4_xs_scales(blocks["scales_l"], blocks["scales_h"]), None


_FORMATS: Mapping[str, tuple[NBitsLayout, Callable[[Blocks], Split]]] = MappingProxyType(
    {
        "Q4_0": (NBitsLayout(4, 32, False), _q4_0),
        "Q4_1": (NBitsLayout(4, 32, True), _q4_1),
        "Q5_0": (NBitsLayout(8, 32, False), _q5_0),
        "Q5_1": (NBitsLayout(8, 32, True), _q5_1),
        "Q8_0": (NBitsLayout(8, 32, False), _q8_0),
        "IQ4_NL": (NBitsLayout(8, 32, False), _iq4_nl),
        "Q4_K": (NBitsLayout(4, 32, True), _q4_k),
        "Q5_K": (NBitsLayout(8, 32, True), _q5_k),
        "Q6_K": (NBitsLayout(8, 16, False), _q6_k),
        "IQ4_XS": (NBitsLayout(8, 32, False), _iq4_xs),
    }
)
