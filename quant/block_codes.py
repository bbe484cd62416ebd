"""Where the codes of a block's elements lie in its bytes: one pair of functions per layout, exact in both directions.

`unpack_...` takes blocks [n] to codes uint8 [n, n_elements] in the order of the elements; `pack_...` gives the fields that hold them.
`CODE_LAYOUTS` has the pair of each format by its name.
Codes count from 0: what value a code stands for is the format's own business (blocks.py, k_quants.py, grid_formats.py).
Source of the layouts: ggml/src/ggml-common.h and the dequantize functions of ggml/src/ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from edgelm.quant.block_format import Blocks, Columns
from edgelm.quant.nibbles import Codes, pack_nibbles, unpack_nibbles

# -- 32 elements: element j in the low nibble of byte j, element j + 16 in the high one --------------------------------------------------


def unpack_4_bit_codes(blocks: Blocks) -> Codes:
    """Q4_0, Q4_1, IQ4_NL: codes 0 .. 15."""
    return unpack_nibbles(blocks["qs"]).reshape(-1, 32)


def pack_4_bit_codes(codes: Codes) -> Columns:
    return {"qs": pack_nibbles(codes.reshape(-1, 2, 16))}


def unpack_fifth_bits(blocks: Blocks) -> Codes:
    """Q5_0, Q5_1: bit i of the little-endian word qh is the fifth bit of element i."""
    return np.unpackbits(blocks["qh"].astype("<u4")[:, None].view(np.uint8), axis=1, bitorder="little")


def unpack_5_bit_codes(blocks: Blocks) -> Codes:
    """Q5_0, Q5_1: codes 0 .. 31."""
    codes: Codes = unpack_4_bit_codes(blocks) | unpack_fifth_bits(blocks) << 4
    return codes


def pack_5_bit_codes(codes: Codes) -> Columns:
    high = np.packbits(codes >> 4, axis=1, bitorder="little").view("<u4")[:, 0]
    return {"qh": high, **pack_4_bit_codes(codes & 15)}


def unpack_8_bit_codes(blocks: Blocks) -> Codes:
    """Q8_0: the signed bytes as codes 0 .. 255, so that code 128 is the byte 0."""
    codes: Codes = np.ascontiguousarray(blocks["qs"]).view(np.uint8) ^ 128
    return codes


def pack_8_bit_codes(codes: Codes) -> Columns:
    return {"qs": (codes ^ 128).view(np.int8)}


# -- 256 elements ------------------------------------------------------------------------------------------------------------------------


def unpack_q4_k_codes(blocks: Blocks) -> Codes:
    """Codes 0 .. 15: 32 bytes hold group 2c in their low nibbles and group 2c + 1 in their high ones."""
    return unpack_nibbles(blocks["qs"].reshape(-1, 4, 32)).reshape(-1, 256)


def pack_q4_k_codes(codes: Codes) -> Columns:
    return {"qs": pack_nibbles(codes.reshape(-1, 4, 2, 32)).reshape(-1, 128)}


def unpack_q5_k_fifth_bits(blocks: Blocks) -> Codes:
    """Bit j of byte l of qh is the fifth bit of element l of group j."""
    return np.unpackbits(blocks["qh"][:, None, :], axis=1, bitorder="little").reshape(-1, 256)


def unpack_q5_k_codes(blocks: Blocks) -> Codes:
    """Codes 0 .. 31."""
    codes: Codes = unpack_q4_k_codes(blocks) | unpack_q5_k_fifth_bits(blocks) << 4
    return codes


def pack_q5_k_codes(codes: Codes) -> Columns:
    high = np.packbits((codes >> 4).reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)
    return {"qh": high, **pack_q4_k_codes(codes & 15)}


def unpack_q6_k_nibbles(blocks: Blocks) -> Codes:
    """The lower four bits: in each half of 128 elements, 64 bytes of ql hold elements 0 .. 63 low and 64 .. 127 high."""
    return unpack_nibbles(blocks["ql"].reshape(-1, 2, 64)).reshape(-1, 256)


def unpack_q6_k_upper_bits(blocks: Blocks) -> Codes:
    """The upper two bits: in each half, the four pairs of bits in 32 bytes of qh belong to four rows of 32."""
    pairs: Codes = blocks["qh"].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return pairs.reshape(-1, 256)


def unpack_q6_k_codes(blocks: Blocks) -> Codes:
    """Codes 0 .. 63."""
    codes: Codes = unpack_q6_k_nibbles(blocks) | unpack_q6_k_upper_bits(blocks) << 4
    return codes


def pack_q6_k_codes(codes: Codes) -> Columns:
    rows = codes.reshape(-1, 2, 4, 32)
    high = rows >> 4
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    ql = pack_nibbles((rows & 15).reshape(-1, 2, 2, 64))
    return {"ql": ql.reshape(-1, 128), "qh": qh.reshape(-1, 64)}


def unpack_iq4_xs_codes(blocks: Blocks) -> Codes:
    """Codes 0 .. 15: each group of 32 lies in 16 bytes as in the 32-element formats."""
    return unpack_nibbles(blocks["qs"].reshape(-1, 8, 16)).reshape(-1, 256)


def pack_iq4_xs_codes(codes: Codes) -> Columns:
    return {"qs": pack_nibbles(codes.reshape(-1, 8, 2, 16)).reshape(-1, 128)}


# -- by format ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CodeLayout:
    """Where a format's codes lie.

    Attributes:
        unpack: blocks [n] to codes uint8 [n, n_elements], in the order of the elements.
        pack: the inverse, to the fields that hold the codes.
    """

    unpack: Callable[[Blocks], Codes]
    pack: Callable[[Codes], Columns]


_4_BITS = CodeLayout(unpack_4_bit_codes, pack_4_bit_codes)
_5_BITS = CodeLayout(unpack_5_bit_codes, pack_5_bit_codes)

CODE_LAYOUTS: Mapping[str, CodeLayout] = MappingProxyType(
    {
        "Q4_0": _4_BITS,
        "Q4_1": _4_BITS,
        "IQ4_NL": _4_BITS,
        "Q5_0": _5_BITS,
        "Q5_1": _5_BITS,
        "Q8_0": CodeLayout(unpack_8_bit_codes, pack_8_bit_codes),
        "Q4_K": CodeLayout(unpack_q4_k_codes, pack_q4_k_codes),
        "Q5_K": CodeLayout(unpack_q5_k_codes, pack_q5_k_codes),
        "Q6_K": CodeLayout(unpack_q6_k_codes, pack_q6_k_codes),
        "IQ4_XS": CodeLayout(unpack_iq4_xs_codes, pack_iq4_xs_codes),
    }
)
