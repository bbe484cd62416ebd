"""The CPU engine's weight layout: eight rows side by side, so that one vector lane is one output row.

Eight rows of a matrix become one run of records; nothing is rounded, and `unpack` gives the file's bytes back. Per 32 input channels
(a group) a record holds, for quantized formats,

    nibbles  [4, 8, 4]  vector k, row, byte b: channel 4k + b in the low nibble, channel 16 + 4k + b in the high one
    plane    [8, 4]     5-bit formats: bit k of byte [row, b] is the fifth bit of channel 4k + b
    planes   [2, 8, 4]  6-bit formats: bits 2i, 2i+1 of byte [v, row, b] are the upper bits of channel 16v + 4i + b
    bytes    [8, 8, 4]  8-bit formats: vector k, row, byte b: channel 4k + b
    d, m, .. [8]        the scales of the eight rows

and formats with superblocks put their per-row d (and dmin) once before eight such groups. Float formats are plain
columns: [channel, 8].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import UnsupportedModelError
from edgelm.quant.blocks import BlockFormat

ROWS = 8
GROUP = 32

Array = NDArray[Any]
Parts = dict[str, Array]

_SHAPES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "nibbles": ("u1", (4, ROWS, 4)),
    "plane": ("u1", (ROWS, 4)),
    "planes": ("u1", (2, ROWS, 4)),
    "bytes": ("i1", (8, ROWS, 4)),
    "d": ("<f2", (ROWS,)),
    "m": ("<f2", (ROWS,)),
    "dmin": ("<f2", (ROWS,)),
    "scale": ("u1", (ROWS,)),
    "min": ("u1", (ROWS,)),
    "signed": ("i1", (ROWS,)),
    "signed2": ("i1", (2, ROWS)),
}


@dataclass(frozen=True)
class RowLayout:
    """How one block format lies in memory for the CPU engine.

    Attributes:
        name: of the block format.
        n_groups: groups of 32 channels in a block.
        header: fields that come once per block and row.
        group: fields of each group.
        split: blocks [n] to parts: header fields [n], group fields [n, n_groups, ...], codes as `_nibbles` and its kind make them.
        join: the inverse, filling the fields of empty blocks [n].
    """

    name: str
    n_groups: int
    header: tuple[str, ...]
    group: tuple[str, ...]
    split: Callable[[Array], Parts]
    join: Callable[[Parts, Array], None]

    @cached_property
    def group_dtype(self) -> np.dtype[np.void]:
        return np.dtype([(name, *_SHAPES[name]) for name in self.group])

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """One block of eight rows."""
        return np.dtype([*((name, *_SHAPES[name]) for name in self.header), ("groups", self.group_dtype, (self.n_groups,))])

    def offset(self, field: str) -> int:
        """Bytes from the start of the group (or, for a header field, of the block) to the field."""
        fields: Any = self.dtype.fields if field in self.header else self.group_dtype.fields
        return int(fields[field][1])

    @cached_property
    def header_bytes(self) -> int:
        return self.dtype.itemsize - self.n_groups * self.group_dtype.itemsize

    @cached_property
    def group_bytes(self) -> int:
        return self.group_dtype.itemsize


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


def _simple(*scales: str) -> tuple[Callable[[Array], Parts], Callable[[Parts, Array], None]]:
    """Q4_0, Q4_1, IQ4_NL: the file's nibble bytes as they are."""

    def split(blocks: Array) -> Parts:
        return {"nibbles": blocks["qs"][:, None], **{s: blocks[s][:, None] for s in scales}}

    def join(parts: Parts, blocks: Array) -> None:
        blocks["qs"] = parts["nibbles"][:, 0]
        for s in scales:
            blocks[s] = parts[s][:, 0]

    return split, join


def _five_bits(*scales: str) -> tuple[Callable[[Array], Parts], Callable[[Parts, Array], None]]:
    """Q5_0, Q5_1: bit i of qh is the fifth bit of element i."""
    base_split, base_join = _simple(*scales)

    def split(blocks: Array) -> Parts:
        high = np.unpackbits(np.ascontiguousarray(blocks["qh"]).view(np.uint8).reshape(-1, 4), axis=-1, bitorder="little")
        return {**base_split(blocks), "plane": _merge_bits(_lanes(high), 1, 8)[:, None, 0]}

    def join(parts: Parts, blocks: Array) -> None:
        base_join(parts, blocks)
        bits = _split_bits(parts["plane"][:, 0, None], 1, 8).reshape(-1, GROUP)
        blocks["qh"] = np.packbits(bits, axis=-1, bitorder="little").view("<u4")[:, 0]

    return split, join


def _split_q8(blocks: Array) -> Parts:
    return {"bytes": blocks["qs"][:, None], "d": blocks["d"][:, None]}


def _join_q8(parts: Parts, blocks: Array) -> None:
    blocks["qs"], blocks["d"] = parts["bytes"][:, 0], parts["d"][:, 0]


def _k_nibbles(qs: Array) -> Array:
    """K-quants' qs [n, 128] to nibble bytes [n, 8, 16]: 32 bytes hold group 2c in low nibbles and group 2c + 1 in high ones."""
    chunks = qs.reshape(-1, 4, 1, GROUP)
    codes = np.concatenate([chunks & 15, chunks >> 4], axis=2)
    return _pair(codes.reshape(-1, 8, GROUP))


def _k_qs(nibbles: Array) -> Array:
    codes = _unpair(nibbles).reshape(-1, 4, 2, GROUP)
    qs: Array = (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(-1, 128)
    return qs


def _k_scales(packed: Array) -> tuple[Array, Array]:
    """The 12 scale bytes [n, 12] to six-bit scales and mins, each [n, 8]."""
    a, b, c = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([a & 63, (c & 15) | (a >> 6) << 4], axis=1)
    minimum = np.concatenate([b & 63, (c >> 4) | (b >> 6) << 4], axis=1)
    return scale, minimum


def _k_packed(scale: Array, minimum: Array) -> Array:
    s0, s1, m0, m1 = scale[:, :4], scale[:, 4:], minimum[:, :4], minimum[:, 4:]
    return np.concatenate([s0 | (s1 >> 4) << 6, m0 | (m1 >> 4) << 6, (s1 & 15) | (m1 & 15) << 4], axis=1)


def _split_q4_k(blocks: Array) -> Parts:
    scale, minimum = _k_scales(blocks["scales"])
    return {"d": blocks["d"], "dmin": blocks["dmin"], "scale": scale, "min": minimum, "nibbles": _k_nibbles(blocks["qs"])}


def _join_q4_k(parts: Parts, blocks: Array) -> None:
    blocks["d"], blocks["dmin"] = parts["d"], parts["dmin"]
    blocks["scales"] = _k_packed(parts["scale"], parts["min"])
    blocks["qs"] = _k_qs(parts["nibbles"])


def _split_q5_k(blocks: Array) -> Parts:
    bits = (blocks["qh"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    return {**_split_q4_k(blocks), "plane": _merge_bits(_lanes(bits), 1, 8)[:, :, 0]}


def _join_q5_k(parts: Parts, blocks: Array) -> None:
    _join_q4_k(parts, blocks)
    bits = _split_bits(parts["plane"][:, :, None], 1, 8).reshape(-1, 8, GROUP)
    blocks["qh"] = np.bitwise_or.reduce(bits << np.arange(8, dtype=np.uint8)[:, None], axis=1)


def _split_q6_k(blocks: Array) -> Parts:
    ql = blocks["ql"].reshape(-1, 2, 1, 2, GROUP)
    low = np.concatenate([ql & 15, ql >> 4], axis=2).reshape(-1, 8, GROUP)
    shifts = (2 * np.arange(4, dtype=np.uint8))[:, None]
    high = ((blocks["qh"].reshape(-1, 2, 1, GROUP) >> shifts) & 3).reshape(-1, 8, GROUP)
    signed2 = blocks["scales"].reshape(-1, 8, 2)
    return {"d": blocks["d"], "nibbles": _pair(low), "planes": _merge_bits(_lanes(high), 2, 4), "signed2": signed2}


def _join_q6_k(parts: Parts, blocks: Array) -> None:
    blocks["d"], blocks["scales"] = parts["d"], parts["signed2"].reshape(-1, 16)
    low = _unpair(parts["nibbles"]).reshape(-1, 2, 2, 2, GROUP)
    blocks["ql"] = (low[:, :, 0] | low[:, :, 1] << 4).reshape(-1, 128)
    high = _split_bits(parts["planes"], 2, 4).reshape(-1, 2, 4, GROUP)
    shifts = (2 * np.arange(4, dtype=np.uint8))[:, None]
    blocks["qh"] = np.bitwise_or.reduce(high << shifts, axis=2).reshape(-1, 64)


def _split_iq4_xs(blocks: Array) -> Parts:
    nibbles = blocks["qs"].reshape(-1, 8, 16)
    low = np.stack([blocks["scales_l"] & 15, blocks["scales_l"] >> 4], axis=-1).reshape(-1, 8)
    high = (blocks["scales_h"][:, None] >> (2 * np.arange(8, dtype=np.uint16))) & 3
    return {"d": blocks["d"], "signed": (low.astype(np.int8) | high.astype(np.int8) << 4) - 32, "nibbles": nibbles}


def _join_iq4_xs(parts: Parts, blocks: Array) -> None:
    scale = (parts["signed"].astype(np.int16) + 32).astype(np.uint16)
    blocks["d"], blocks["qs"] = parts["d"], parts["nibbles"].reshape(-1, 128)
    low = (scale & 15).astype(np.uint8).reshape(-1, 4, 2)
    blocks["scales_l"] = low[..., 0] | low[..., 1] << 4
    blocks["scales_h"] = np.bitwise_or.reduce((scale >> 4) << (2 * np.arange(8, dtype=np.uint16)), axis=1)


LAYOUTS: Mapping[str, RowLayout] = {
    layout.name: layout
    for layout in (
        RowLayout("Q4_0", 1, (), ("nibbles", "d"), *_simple("d")),
        RowLayout("Q4_1", 1, (), ("nibbles", "d", "m"), *_simple("d", "m")),
        RowLayout("IQ4_NL", 1, (), ("nibbles", "d"), *_simple("d")),
        RowLayout("Q5_0", 1, (), ("nibbles", "plane", "d"), *_five_bits("d")),
        RowLayout("Q5_1", 1, (), ("nibbles", "plane", "d", "m"), *_five_bits("d", "m")),
        RowLayout("Q8_0", 1, (), ("bytes", "d"), _split_q8, _join_q8),
        RowLayout("Q4_K", 8, ("d", "dmin"), ("nibbles", "scale", "min"), _split_q4_k, _join_q4_k),
        RowLayout("Q5_K", 8, ("d", "dmin"), ("nibbles", "plane", "scale", "min"), _split_q5_k, _join_q5_k),
        RowLayout("Q6_K", 8, ("d",), ("nibbles", "planes", "signed2"), _split_q6_k, _join_q6_k),
        RowLayout("IQ4_XS", 8, ("d",), ("nibbles", "signed"), _split_iq4_xs, _join_iq4_xs),
    )
}
FLOATS: Mapping[str, str] = {"F32": "<u4", "F16": "<u2", "BF16": "<u2"}

# part [..., its own shape per row] <-> the shape within eight rows: where the row axis goes
_ROW_AXIS: Mapping[str, int] = {"nibbles": 1, "plane": 0, "planes": 1, "bytes": 1, "signed2": 1}

_WORDS = ("nibbles", "plane", "planes", "bytes")  # fields of four bytes per lane, moved as one word


def _part_shape(name: str) -> tuple[int, ...]:
    """Shape of one row's share of a field."""
    shape = _SHAPES[name][1]
    axis = _ROW_AXIS.get(name, 0)
    return shape[:axis] + shape[axis + 1 :]


def padded_rows(n_rows: int) -> int:
    """n_rows rounded up to whole runs of eight."""
    return -(-n_rows // ROWS) * ROWS


def packed_bytes(format: BlockFormat, n_rows: int, n_columns: int) -> int:
    """Bytes of a packed matrix [n_rows, n_columns].

    Raises:
        UnsupportedModelError: the CPU engine has no layout for the format.
    """
    if format.name in FLOATS:
        return padded_rows(n_rows) * format.nbytes((n_columns,))
    blocks_per_row = format.nbytes((n_columns,)) // format.n_bytes
    return padded_rows(n_rows) // ROWS * blocks_per_row * _layout(format).dtype.itemsize


def _layout(format: BlockFormat) -> RowLayout:
    if format.name not in LAYOUTS:
        raise UnsupportedModelError(f"format {format.name} has no layout for the CPU engine; it knows {', '.join([*FLOATS, *LAYOUTS])}")
    return LAYOUTS[format.name]


def pack(format: BlockFormat, data: Array, n_rows: int, n_columns: int, out: Array | None = None) -> Array:
    """Rearrange the file's bytes, uint8 [n_rows * bytes per row], into eight-row records.

    Rows are padded with zero bytes, which are zero weights in every format. `out`, uint8 [packed_bytes(...)], is filled and returned.
    """
    out = np.empty(packed_bytes(format, n_rows, n_columns), np.uint8) if out is None else out
    runs = padded_rows(n_rows) // ROWS
    row_bytes = format.nbytes((n_columns,))
    step = max(1, (1 << 21) // (ROWS * row_bytes))  # temporaries that stay in the cache
    for start in range(0, runs, step):
        count = min(step, runs - start)
        rows = data[start * ROWS * row_bytes : (start + count) * ROWS * row_bytes]
        if rows.size < count * ROWS * row_bytes:
            rows = np.concatenate([rows, np.zeros(count * ROWS * row_bytes - rows.size, np.uint8)])
        target = out.reshape(runs, -1)[start : start + count]
        (_pack_floats if format.name in FLOATS else _pack_blocks)(format, rows, target)
    return out


def _pack_floats(format: BlockFormat, rows: Array, target: Array) -> None:
    dtype = FLOATS[format.name]
    values = np.ascontiguousarray(rows).view(dtype).reshape(len(target), ROWS, -1)
    target.view(dtype).reshape(len(target), -1, ROWS)[:] = values.transpose(0, 2, 1)


def _pack_blocks(format: BlockFormat, rows: Array, target: Array) -> None:
    layout = _layout(format)
    records = target.view(layout.dtype)  # [runs, blocks per row]
    parts = layout.split(np.ascontiguousarray(rows).view(format.dtype))
    for name in layout.header:
        records[name] = parts[name].reshape(len(target), ROWS, -1).transpose(0, 2, 1)
    for name in layout.group:
        part = parts[name].reshape(len(target), ROWS, -1, layout.n_groups, *_part_shape(name))
        part, field = np.moveaxis(part, 1, 3 + _ROW_AXIS.get(name, 0)), records["groups"][name]
        if name in _WORDS:
            part, field = part.view("<u4"), field.view("<u4")
        field[...] = part


def unpack(format: BlockFormat, packed: Array, n_rows: int, n_columns: int) -> Array:
    """The inverse of `pack`: the file's bytes, uint8 [n_rows * bytes per row]."""
    runs = padded_rows(n_rows) // ROWS
    if format.name in FLOATS:
        values = packed.view(FLOATS[format.name]).reshape(runs, n_columns, ROWS).transpose(0, 2, 1)
        return np.ascontiguousarray(values).view(np.uint8).reshape(-1)[: format.nbytes((n_rows, n_columns))]
    layout = _layout(format)
    records = packed.view(layout.dtype).reshape(runs, -1)
    parts: Parts = {name: records[name].transpose(0, 2, 1).reshape(-1) for name in layout.header}
    for name in layout.group:
        part = np.moveaxis(records["groups"][name], 3 + _ROW_AXIS.get(name, 0), 1)
        shape = (-1,) if name in ("nibbles", "bytes") else _part_shape(name)
        n_blocks = padded_rows(n_rows) * records.shape[1]
        parts[name] = np.ascontiguousarray(part).reshape(n_blocks, layout.n_groups, *shape)
    blocks = np.zeros(padded_rows(n_rows) * records.shape[1], format.dtype)
    layout.join(parts, blocks)
    return blocks.view(np.uint8)[: format.nbytes((n_rows, n_columns))]
