"""The fields of blocks as the parts that the eight-row records are put together from, and back; nothing is rounded.

A part has an entry per group of 32 channels, [n, n_groups, ...]: nibbles flat [16], channel j low and channel j + 16 high; a plane [4] or
planes [2, 4] of upper bits as `pack_rows` describes them; bytes flat [32]. What comes once per block is [n].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.quant.block_codes import (
    pack_5_bit_codes,
    pack_q4_k_codes,
    pack_q5_k_codes,
    pack_q6_k_codes,
    unpack_fifth_bits,
    unpack_q4_k_codes,
    unpack_q5_k_fifth_bits,
    unpack_q6_k_nibbles,
    unpack_q6_k_upper_bits,
)
from edgelm.quant.k_quants import pack_iq4_xs_scales, pack_scales_and_mins, unpack_iq4_xs_scales, unpack_scales_and_mins

GROUP = 32

Array = NDArray[Any]
Parts = dict[str, Array]


@dataclass(frozen=True)
class Rearrangement:
    """Some fields of a block, to the engine's parts and back.

    Attributes:
        split: blocks [n] to parts.
        join: the inverse, to the fields of the blocks.
    """

    split: Callable[[Array], Parts]
    join: Callable[[Parts], Parts]


# ---- codes: bytes of blocks to one array per group, and back
def _lanes(codes: Array) -> Array:
    """Codes of channels [..., 32] as [..., slab k, byte b]."""
    return codes.reshape(*codes.shape[:-1], 8, 4)


def _merge_bits(values: Array, width: int, per_byte: int) -> Array:
    """Small codes uint8 [..., n, 4], n a multiple of per_byte, to bytes [..., n / per_byte, 4], the first code in the lowest bits.

    The four bytes are shifted as one word: nothing crosses from one to the next, and numpy is left with long loops.
    """
    words = np.ascontiguousarray(values).view(np.uint32).reshape(*values.shape[:-2], -1, per_byte)
    merged = words[..., 0].copy()
    for k in range(1, per_byte):
        merged |= words[..., k] << np.uint32(width * k)
    return merged[..., None].view(np.uint8)


def _split_bits(packed: Array, width: int, per_byte: int) -> Array:
    """The inverse of `_merge_bits`."""
    shifts = (width * np.arange(per_byte, dtype=np.uint8))[:, None]
    parts = (packed[..., None, :] >> shifts) & ((1 << width) - 1)
    return parts.reshape(*packed.shape[:-2], -1, 4)


def _pair(codes: Array) -> Array:
    """Codes [..., 32] below 16 to nibble bytes [..., 16]: channel j low, channel j + 16 high."""
    nibbles: Array = codes[..., :16] | codes[..., 16:] << 4
    return nibbles


def _unpair(nibbles: Array) -> Array:
    return np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)


# ---- the fields of a block that hold codes
def _split_file_nibbles(blocks: Array) -> Parts:
    """Formats whose groups of 32 already lie in 16 bytes as the kernels read them."""
    return {"nibbles": blocks["qs"].reshape(len(blocks), -1, 16)}


def _join_file_nibbles(parts: Parts) -> Parts:
    return {"qs": parts["nibbles"].reshape(len(parts["nibbles"]), -1)}


def _split_bytes(blocks: Array) -> Parts:
    return {"bytes": blocks["qs"][:, None]}


def _join_bytes(parts: Parts) -> Parts:
    return {"qs": parts["bytes"][:, 0]}


def _join_paired(parts: Parts) -> Parts:
    return pack_q4_k_codes(_unpair(parts["nibbles"]))


def _split_paired(blocks: Array) -> Parts:
    return {"nibbles": _pair(unpack_q4_k_codes(blocks).reshape(-1, 8, GROUP))}


def _split_q6_k(blocks: Array) -> Parts:
    upper = unpack_q6_k_upper_bits(blocks).reshape(-1, 8, GROUP)
    return {"nibbles": _pair(unpack_q6_k_nibbles(blocks).reshape(-1, 8, GROUP)), "planes": _merge_bits(_lanes(upper), 2, 4)}


def _join_q6_k(parts: Parts) -> Parts:
    upper = _split_bits(parts["planes"], 2, 4).reshape(-1, 8, GROUP)
    return pack_q6_k_codes((_unpair(parts["nibbles"]) | upper << 4).reshape(-1, 256))


def _split_five_bits(blocks: Array) -> Parts:
    return {**_split_file_nibbles(blocks), "plane": _plane(unpack_fifth_bits(blocks))}


def _join_five_bits(parts: Parts) -> Parts:
    return pack_5_bit_codes(_with_plane(parts)[:, 0])


def _split_q5_k(blocks: Array) -> Parts:
    return {**_split_paired(blocks), "plane": _plane(unpack_q5_k_fifth_bits(blocks))}


def _join_q5_k(parts: Parts) -> Parts:
    return pack_q5_k_codes(_with_plane(parts).reshape(-1, 256))


def _plane(fifth_bits: Array) -> Array:
    """Bits [n, n_elements] to the planes of the groups, [n, n_groups, 4]."""
    return _merge_bits(_lanes(fifth_bits.reshape(len(fifth_bits), -1, GROUP)), 1, 8)[:, :, 0]


def _with_plane(parts: Parts) -> Array:
    """Nibbles and planes to codes [n, n_groups, 32]."""
    codes = _unpair(parts["nibbles"])
    codes |= _split_bits(parts["plane"][:, :, None], 1, 8).reshape(codes.shape) << 4
    return codes


# ---- the fields of a block that hold scales
def per_group(*scales: str) -> Rearrangement:
    """Formats of one group: its scales as they are."""

    def split(blocks: Array) -> Parts:
        return {s: blocks[s][:, None] for s in scales}

    def join(parts: Parts) -> Parts:
        return {s: parts[s][:, 0] for s in scales}

    return Rearrangement(split, join)


def _split_with_mins(blocks: Array) -> Parts:
    scale, minimum = unpack_scales_and_mins(blocks["scales"])
    return {"d": blocks["d"], "dmin": blocks["dmin"], "scale": scale, "min": minimum}


def _join_with_mins(parts: Parts) -> Parts:
    return {"d": parts["d"], "dmin": parts["dmin"], "scales": pack_scales_and_mins(parts["scale"], parts["min"])}


def _split_pairs(blocks: Array) -> Parts:
    return {"d": blocks["d"], "signed2": blocks["scales"].reshape(-1, 8, 2)}


def _join_pairs(parts: Parts) -> Parts:
    return {"d": parts["d"], "scales": parts["signed2"].reshape(-1, 16)}


def _split_signed(blocks: Array) -> Parts:
    return {"d": blocks["d"], "signed": unpack_iq4_xs_scales(blocks["scales_l"], blocks["scales_h"])}


def _join_signed(parts: Parts) -> Parts:
    low, high = pack_iq4_xs_scales(parts["signed"])
    return {"d": parts["d"], "scales_l": low, "scales_h": high}


FILE_NIBBLES = Rearrangement(_split_file_nibbles, _join_file_nibbles)
BYTES = Rearrangement(_split_bytes, _join_bytes)
FIVE_BITS = Rearrangement(_split_five_bits, _join_five_bits)
PAIRED_NIBBLES = Rearrangement(_split_paired, _join_paired)
PAIRED_FIVE_BITS = Rearrangement(_split_q5_k, _join_q5_k)
SIX_BITS = Rearrangement(_split_q6_k, _join_q6_k)
SCALES_AND_MINS = Rearrangement(_split_with_mins, _join_with_mins)
SIGNED_PAIRS = Rearrangement(_split_pairs, _join_pairs)
SIGNED = Rearrangement(_split_signed, _join_signed)
