"""The number formats of model files, each declared once: bytes, fields, and the numpy reference in both directions.

The layouts are ggml's (ggml/src/ggml-common.h). In the 32-element formats byte j of `qs` holds element j in its low nibble and
element j + 16 in its high nibble. `decode` keeps ggml's order of float32 operations, so that results are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from edgelm.quant.block_codes import pack_4_bit_codes, pack_5_bit_codes, unpack_4_bit_codes, unpack_5_bit_codes
from edgelm.quant.block_format import BlockFormat, Blocks, Columns, Field, Values, column
from edgelm.quant.k_quants import IQ4_XS, Q4_K, Q5_K, Q6_K
from edgelm.quant.nibbles import IQ4_TABLE, Codes, nearest_iq4, search_iq4_scale

__all__ = [
    "BF16",
    "F16",
    "F32",
    "FORMATS",
    "FORMAT_BY_ID",
    "IQ4_NL",
    "IQ4_XS",
    "Q4_0",
    "Q4_1",
    "Q4_K",
    "Q5_0",
    "Q5_1",
    "Q5_K",
    "Q6_K",
    "Q8_0",
    "BlockFormat",
    "Field",
]


def _inverse(scale: Values) -> Values:
    return np.where(scale == 0, np.float32(0), 1 / scale).astype(np.float32)


def _largest(values: Values) -> Values:
    """The signed value of largest magnitude in each row, [n, 1]."""
    return np.take_along_axis(values, np.abs(values).argmax(axis=1, keepdims=True), axis=1)


def _codes(scaled: Values, top: int) -> Codes:
    """Truncate, as ggml does after adding its half, and clip to 0 .. top."""
    return np.trunc(scaled).clip(0, top).astype(np.uint8)


# -- one element per block -------------------------------------------------------------------------------------------------------------


def _decode_float(blocks: Blocks) -> Values:
    values: Values = blocks["values"].astype(np.float32)[:, None]
    return values


def _decode_bf16(blocks: Blocks) -> Values:
    return (blocks["values"].astype(np.uint32) << 16).view(np.float32)[:, None]


def _encode_float(values: Values) -> Columns:
    return {"values": values[:, 0]}


def _encode_bf16(values: Values) -> Columns:
    """Round to nearest even; a NaN stays one, made quiet."""
    bits = values[:, 0].view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return {"values": np.where((bits & 0x7FFFFFFF) > 0x7F800000, (bits >> 16) | 64, rounded)}


F32 = BlockFormat("F32", 0, 1, 4, (Field("values", "<f4", 0),), _decode_float, _encode_float)
F16 = BlockFormat("F16", 1, 1, 2, (Field("values", "<f2", 0),), _decode_float, _encode_float)
BF16 = BlockFormat("BF16", 30, 1, 2, (Field("values", "<u2", 0),), _decode_bf16, _encode_bf16)


# -- 32 elements per block -------------------------------------------------------------------------------------------------------------


def _decode_q4_0(blocks: Blocks) -> Values:
    return column(blocks, "d") * (unpack_4_bit_codes(blocks).astype(np.float32) - 8)


def _encode_q4_0(values: Values) -> Columns:
    d = _largest(values) / -8
    codes = _codes(values * _inverse(d) + np.float32(8.5), 15)
    return {"d": d[:, 0], **pack_4_bit_codes(codes)}


def _decode_q4_1(blocks: Blocks) -> Values:
    return column(blocks, "d") * unpack_4_bit_codes(blocks) + column(blocks, "m")


def _encode_q4_1(values: Values) -> Columns:
    m = values.min(axis=1, keepdims=True)
    d = (values.max(axis=1, keepdims=True) - m) / 15
    codes = _codes((values - m) * _inverse(d) + np.float32(0.5), 15)
    return {"d": d[:, 0], "m": m[:, 0], **pack_4_bit_codes(codes)}


def _decode_q5_0(blocks: Blocks) -> Values:
    return column(blocks, "d") * (unpack_5_bit_codes(blocks).astype(np.float32) - 16)


def _encode_q5_0(values: Values) -> Columns:
    d = _largest(values) / -16
    return {"d": d[:, 0], **pack_5_bit_codes(_codes(values * _inverse(d) + np.float32(16.5), 31))}


def _decode_q5_1(blocks: Blocks) -> Values:
    return column(blocks, "d") * unpack_5_bit_codes(blocks) + column(blocks, "m")


def _encode_q5_1(values: Values) -> Columns:
    m = values.min(axis=1, keepdims=True)
    d = (values.max(axis=1, keepdims=True) - m) / 31
    return {"d": d[:, 0], "m": m[:, 0], **pack_5_bit_codes(_codes((values - m) * _inverse(d) + np.float32(0.5), 31))}


def _decode_q8_0(blocks: Blocks) -> Values:
    values: Values = column(blocks, "d") * blocks["qs"]
    return values


def _encode_q8_0(values: Values) -> Columns:
    d = np.abs(values).max(axis=1, keepdims=True) / 127
    scaled = values * _inverse(d)
    # Halves away from zero, as C's roundf.
    return {"d": d[:, 0], "qs": np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)}


def _decode_iq4_nl(blocks: Blocks) -> Values:
    return column(blocks, "d") * IQ4_TABLE[unpack_4_bit_codes(blocks)]


def _encode_iq4_nl(values: Values) -> Columns:
    d = search_iq4_scale(values).astype(np.float16)
    codes = nearest_iq4(values * _inverse(d.astype(np.float32)[:, None]))
    return {"d": d, **pack_4_bit_codes(codes)}


Q4_0 = BlockFormat("Q4_0", 2, 32, 18, (Field("d", "<f2", 0), Field("qs", "u1", 2, 16)), _decode_q4_0, _encode_q4_0)
Q4_1 = BlockFormat("Q4_1", 3, 32, 20, (Field("d", "<f2", 0), Field("m", "<f2", 2), Field("qs", "u1", 4, 16)), _decode_q4_1, _encode_q4_1)
Q5_0 = BlockFormat("Q5_0", 6, 32, 22, (Field("d", "<f2", 0), Field("qh", "<u4", 2), Field("qs", "u1", 6, 16)), _decode_q5_0, _encode_q5_0)
Q5_1 = BlockFormat(
    "Q5_1",
    7,
    32,
    24,
    (Field("d", "<f2", 0), Field("m", "<f2", 2), Field("qh", "<u4", 4), Field("qs", "u1", 8, 16)),
    _decode_q5_1,
    _encode_q5_1,
)
Q8_0 = BlockFormat("Q8_0", 8, 32, 34, (Field("d", "<f2", 0), Field("qs", "i1", 2, 32)), _decode_q8_0, _encode_q8_0)
IQ4_NL = BlockFormat("IQ4_NL", 20, 32, 18, (Field("d", "<f2", 0), Field("qs", "u1", 2, 16)), _decode_iq4_nl, _encode_iq4_nl)


FORMATS: Mapping[str, BlockFormat] = MappingProxyType(
    {f.name: f for f in (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q4_K, Q5_K, Q6_K, IQ4_XS)}
)
FORMAT_BY_ID: Mapping[int, BlockFormat] = MappingProxyType({f.type_id: f for f in FORMATS.values()})
