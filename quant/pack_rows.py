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

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgelm.errors import UnsupportedModelError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.row_parts import (
    BYTES,
    FILE_NIBBLES,
    FIVE_BITS,
    PAIRED_FIVE_BITS,
    PAIRED_NIBBLES,
    SCALES_AND_MINS,
    SIGNED,
    SIGNED_PAIRS,
    SIX_BITS,
    Array,
    Parts,
    Rearrangement,
    per_group,
)

ROWS = 8

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
        codes: how the block's codes become fields of the groups.
        scales: how its scales become the other fields.
    """

    name: str
    n_groups: int
    header: tuple[str, ...]
    group: tuple[str, ...]
    codes: Rearrangement
    scales: Rearrangement

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


LAYOUTS: Mapping[str, RowLayout] = {
    layout.name: layout
    for layout in (
        RowLayout("Q4_0", 1, (), ("nibbles", "d"), FILE_NIBBLES, per_group("d")),
        RowLayout("Q4_1", 1, (), ("nibbles", "d", "m"), FILE_NIBBLES, per_group("d", "m")),
        RowLayout("IQ4_NL", 1, (), ("nibbles", "d"), FILE_NIBBLES, per_group("d")),
        RowLayout("Q5_0", 1, (), ("nibbles", "plane", "d"), FIVE_BITS, per_group("d")),
        RowLayout("Q5_1", 1, (), ("nibbles", "plane", "d", "m"), FIVE_BITS, per_group("d", "m")),
        RowLayout("Q8_0", 1, (), ("bytes", "d"), BYTES, per_group("d")),
        RowLayout("Q4_K", 8, ("d", "dmin"), ("nibbles", "scale", "min"), PAIRED_NIBBLES, SCALES_AND_MINS),
        RowLayout("Q5_K", 8, ("d", "dmin"), ("nibbles", "plane", "scale", "min"), PAIRED_FIVE_BITS, SCALES_AND_MINS),
        RowLayout("Q6_K", 8, ("d",), ("nibbles", "planes", "signed2"), SIX_BITS, SIGNED_PAIRS),
        RowLayout("IQ4_XS", 8, ("d",), ("nibbles", "signed"), FILE_NIBBLES, SIGNED),
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
    blocks = np.ascontiguousarray(rows).view(format.dtype)
    parts = {**layout.codes.split(blocks), **layout.scales.split(blocks)}
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
    for name, items in {**layout.codes.join(parts), **layout.scales.join(parts)}.items():
        blocks[name] = items
    return blocks.view(np.uint8)[: format.nbytes((n_rows, n_columns))]
