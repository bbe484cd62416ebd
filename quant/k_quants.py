"""The 256-element formats: the K-quants, whose sub-blocks have quantized scales, and IQ4_XS.

Source of the layouts: ggml/src/ggml-common.h. `encode` is a plain reference; ggml's own search finds slightly better scales.
"""

from __future__ import annotations

import numpy as np

from edgelm.quant.block_codes import (
    pack_iq4_xs_codes,
    pack_q4_k_codes,
    pack_q5_k_codes,
    pack_q6_k_codes,
    unpack_iq4_xs_codes,
    unpack_q4_k_codes,
    unpack_q5_k_codes,
    unpack_q6_k_codes,
)
from edgelm.quant.block_format import BlockFormat, Blocks, Columns, Field, Values, column
from edgelm.quant.nibbles import IQ4_TABLE, Codes, nearest_iq4, search_iq4_scale


def _divide(values: Values, scale: Values) -> Values:
    """values / scale, and 0 where the scale is 0."""
    return np.where(scale == 0, np.float32(0), values / scale).astype(np.float32)


def _round_to_f16(values: Values) -> Values:
    return values.astype(np.float16).astype(np.float32)


# -- Q4_K and Q5_K: w = d * sc * q - dmin * mn ---------------------------------------------------------------------------------------------


def unpack_scales_and_mins(packed: Codes) -> tuple[Codes, Codes]:
    """The 6-bit scales and mins of 8 sub-blocks, each uint8 [n, 8], from `scales` uint8 [n, 12]."""
    s, m, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([s & 63, (high & 15) | s >> 6 << 4], axis=1)
    mins = np.concatenate([m & 63, high >> 4 | m >> 6 << 4], axis=1)
    return scales, mins


def pack_scales_and_mins(scales: Codes, mins: Codes) -> Codes:
    """The inverse of unpack_scales_and_mins, uint8 [n, 12]."""
    first = scales[:, :4] | scales[:, 4:] >> 4 << 6
    second = mins[:, :4] | mins[:, 4:] >> 4 << 6
    third = (scales[:, 4:] & 15) | (mins[:, 4:] & 15) << 4
    return np.concatenate([first, second, third], axis=1)


def _decode_with_mins(blocks: Blocks, codes: Codes) -> Values:
    """codes uint8 [n, 256] to values [n, 256]."""
    scales, mins = unpack_scales_and_mins(blocks["scales"])
    scale = column(blocks, "d") * scales
    offset = column(blocks, "dmin") * mins
    values: Values = scale[:, :, None] * codes.reshape(-1, 8, 32) - offset[:, :, None]
    return values.reshape(-1, 256)


def _encode_with_mins(values: Values, top: int) -> tuple[Columns, Codes]:
    """The scale fields, and codes 0 .. top as uint8 [n, 8, 32]."""
    rows = values.reshape(-1, 8, 32)
    low = np.minimum(rows.min(axis=2), 0)
    scale = (rows.max(axis=2) - low) / top
    d = _round_to_f16(scale.max(axis=1, keepdims=True) / 63)
    dmin = _round_to_f16((-low).max(axis=1, keepdims=True) / 63)
    scales = np.rint(_divide(scale, d)).clip(0, 63).astype(np.uint8)
    mins = np.rint(_divide(-low, dmin)).clip(0, 63).astype(np.uint8)
    shifted = rows + (dmin * mins)[:, :, None]
    codes = np.rint(_divide(shifted, (d * scales)[:, :, None])).clip(0, top).astype(np.uint8)
    return {"d": d[:, 0], "dmin": dmin[:, 0], "scales": pack_scales_and_mins(scales, mins)}, codes


def _decode_q4_k(blocks: Blocks) -> Values:
    return _decode_with_mins(blocks, unpack_q4_k_codes(blocks))


def _encode_q4_k(values: Values) -> Columns:
    columns, codes = _encode_with_mins(values, 15)
    return {**columns, **pack_q4_k_codes(codes)}


def _decode_q5_k(blocks: Blocks) -> Values:
    return _decode_with_mins(blocks, unpack_q5_k_codes(blocks))


def _encode_q5_k(values: Values) -> Columns:
    columns, codes = _encode_with_mins(values, 31)
    return {**columns, **pack_q5_k_codes(codes)}


# -- Q6_K: w = d * sc * (q - 32), a scale per 16 --------------------------------------------------------------------------------------


def _decode_q6_k(blocks: Blocks) -> Values:
    codes = unpack_q6_k_codes(blocks).reshape(-1, 16, 16).astype(np.float32) - 32
    scale = column(blocks, "d") * blocks["scales"]
    values: Values = scale[:, :, None] * codes
    return values.reshape(-1, 256)


def _encode_q6_k(values: Values) -> Columns:
    rows = values.reshape(-1, 16, 16)
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=2, keepdims=True), axis=2)[:, :, 0]
    scale = largest / -32
    top = np.take_along_axis(scale, np.abs(scale).argmax(axis=1, keepdims=True), axis=1)
    d = _round_to_f16(top / -128)
    scales = np.rint(_divide(scale, d)).clip(-128, 127).astype(np.int8)
    codes = (np.rint(_divide(rows, (d * scales)[:, :, None])).clip(-32, 31) + 32).astype(np.uint8)
    return {**pack_q6_k_codes(codes), "scales": scales, "d": d[:, 0]}


# -- IQ4_XS: w = d * (ls - 32) * IQ4_TABLE[q], a scale per 32 -------------------------------------------------------------------------


def unpack_iq4_xs_scales(low: Codes, high: Codes) -> Codes:
    """The signed 6-bit scales of 8 sub-blocks, int8 [n, 8], from `scales_l` [n, 4] and `scales_h` [n]."""
    nibbles = np.stack([low & 15, low >> 4], axis=2).reshape(-1, 8)
    upper = high[:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales: Codes = (nibbles | upper << 4).astype(np.int8) - 32
    return scales


def pack_iq4_xs_scales(scales: Codes) -> tuple[Codes, Codes]:
    """The inverse of unpack_iq4_xs_scales: int8 [n, 8] to `scales_l` uint8 [n, 4] and `scales_h` uint16 [n]."""
    stored = (scales.astype(np.int16) + 32).astype(np.uint16)
    high = ((stored >> 4) << np.arange(0, 16, 2, dtype=np.uint16)).sum(axis=1, dtype=np.uint16)
    low = ((stored[:, 0::2] & 15) | (stored[:, 1::2] & 15) << 4).astype(np.uint8)
    return low, high


def _decode_iq4_xs(blocks: Blocks) -> Values:
    codes = unpack_iq4_xs_codes(blocks).reshape(-1, 8, 32)
    scale = column(blocks, "d") * unpack_iq4_xs_scales(blocks["scales_l"], blocks["scales_h"])
    return (scale[:, :, None] * IQ4_TABLE[codes]).reshape(-1, 256)


def _encode_iq4_xs(values: Values) -> Columns:
    rows = values.reshape(-1, 8, 32)
    scale = search_iq4_scale(values.reshape(-1, 32)).reshape(-1, 8)
    top = np.take_along_axis(scale, np.abs(scale).argmax(axis=1, keepdims=True), axis=1)
    d = _round_to_f16(top / -32)
    ls = np.rint(_divide(scale, d)).clip(-32, 31)
    codes = nearest_iq4(_divide(rows, (d * ls.astype(np.float32))[:, :, None]))
    low, high = pack_iq4_xs_scales(ls.astype(np.int8))
    return {"d": d[:, 0], "scales_h": high, "scales_l": low, **pack_iq4_xs_codes(codes)}


Q4_K = BlockFormat(
    "Q4_K",
    12,
    256,
    144,
    (Field("d", "<f2", 0), Field("dmin", "<f2", 2), Field("scales", "u1", 4, 12), Field("qs", "u1", 16, 128)),
    _decode_q4_k,
    _encode_q4_k,
)
Q5_K = BlockFormat(
    "Q5_K",
    13,
    256,
    176,
    (
        Field("d", "<f2", 0),
        Field("dmin", "<f2", 2),
        Field("scales", "u1", 4, 12),
        Field("qh", "u1", 16, 32),
        Field("qs", "u1", 48, 128),
    ),
    _decode_q5_k,
    _encode_q5_k,
)
Q6_K = BlockFormat(
    "Q6_K",
    14,
    256,
    210,
    (Field("ql", "u1", 0, 128), Field("qh", "u1", 128, 64), Field("scales", "i1", 192, 16), Field("d", "<f2", 208)),
    _decode_q6_k,
    _encode_q6_k,
)
IQ4_XS = BlockFormat(
    "IQ4_XS",
    23,
    256,
    136,
    (Field("d", "<f2", 0), Field("scales_h", "<u2", 2), Field("scales_l", "u1", 4, 4), Field("qs", "u1", 8, 128)),
    _decode_iq4_xs,
    _encode_iq4_xs,
)
