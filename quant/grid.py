"""A quantized matrix as a grid: value = scale * level[code] + offset, with one scale (and offset) for each row and group of columns.

This is the view of a block format that quantizers work in: they choose scales, then codes, and never see a byte. The scales and offsets of
a `Grid` are always ones that the format can store, and its values are the very numbers that the packed blocks decode to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_codes import CODE_LAYOUTS
from edgelm.quant.block_format import BlockFormat, Blocks, Columns, Values
from edgelm.quant.nibbles import nearest_iq4


@dataclass(frozen=True)
class ScaleFields:
    """How a format stores the scales and offsets of a block's groups.

    Attributes:
        names: the block's fields behind them; the others hold codes.
        has_offset: whether groups have an offset.
        read: blocks [n] to the scales, and the offsets or None, float32 [n, n_groups_per_block], as the format's `decode` has them.
        choose_steps: scales, offsets (zeros where the format has none) and weights, float64 [n, n_groups_per_block], to the float16
            fields that a block's groups have in common; nothing where there are none.
        find_steps: the same fields from scales and offsets that are exact, offsets but for tolerances of the same shape (find_step).
        store: those fields, scales and offsets to all the fields of `names`, each rounded to what it can hold.
    """

    names: tuple[str, ...]
    has_offset: bool
    read: Callable[[Blocks], tuple[Values, Values | None]]
    choose_steps: Callable[[Values, Values, Values], Columns]
    find_steps: Callable[[Values, Values, Values], Columns]
    store: Callable[[Columns, Values, Values], Columns]


@dataclass(frozen=True, eq=False)
class GridFormat:
    """A block format as a grid; `grid_format` (grid_formats.py) gives the one of a BlockFormat.

    Attributes:
        block: the format's declaration.
        levels: float32 [n_levels], ascending; code c stands for levels[c].
        group_size: columns that share a scale.
        scale_fields: how scales and offsets are stored.
    """

    block: BlockFormat
    levels: NDArray[np.float32]
    group_size: int
    scale_fields: ScaleFields

    def __repr__(self) -> str:
        return f"GridFormat({self.block.name})"

    @property
    def n_groups_per_block(self) -> int:
        return self.block.n_elements // self.group_size

    @property
    def has_offset(self) -> bool:
        """Whether groups have an offset."""
        return self.scale_fields.has_offset

    @cached_property
    def evenly_spaced(self) -> bool:
        """Whether the levels are whole numbers one after the other."""
        return bool((np.diff(self.levels) == 1).all())

    def round(
        self,
        scales: NDArray[np.floating[Any]],
        offsets: NDArray[np.floating[Any]] | None = None,
        weights: NDArray[np.floating[Any]] | None = None,
    ) -> Grid:
        """The grid nearest to the scales and offsets wished for, each [n_rows, n_groups] and of either sign.

        Formats of 32 elements round to float16. Those of 256 elements choose the float16 steps of each block, and round to whole multiples
        of them, for the least sum of weights * (scale - wish)^2; then likewise for the offsets, which first take over what the rounding of
        the scale did to the middle level. `weights` [n_rows, n_groups], 0 or more, say how much each group matters; None: all the same.

        Raises:
            InvalidRequestError: shapes do not fit, an offset is missing or too many, a value is not finite or too large for float16, or a
                weight is negative.
        """
        return self._rounded(None, scales, offsets, weights)

    def snap(self, grid: Grid, scales: NDArray[np.floating[Any]], offsets: NDArray[np.floating[Any]] | None = None) -> Grid:
        """As `round`, but the steps that a block's groups have in common stay as they are in `grid`.

        Raises:
            InvalidRequestError: as `round`, or `grid` is of another format or shape.
        """
        if grid.format is not self or grid.scales.shape != scales.shape:
            raise InvalidRequestError(
                f"scales {list(scales.shape)} of {self.block.name} cannot snap to {grid.format} {list(grid.scales.shape)}"
            )
        return self._rounded(grid, scales, offsets, None)

    def unpack(self, data: NDArray[np.uint8], n_rows: int, n_columns: int) -> tuple[Grid, NDArray[np.uint8]]:
        """The grid and the codes, uint8 [n_rows, n_columns], of a matrix in blocks, `data` uint8 [bytes].

        Raises:
            ModelFileError: n_columns is not a whole number of blocks.
            InvalidRequestError: the bytes are not those of such a matrix.
        """
        n_bytes = self.block.nbytes((n_rows, n_columns))
        if data.size != n_bytes:
            raise InvalidRequestError(f"{self.block.name} [{n_rows}, {n_columns}] takes {n_bytes} bytes, but {data.size} are given")
        blocks = np.ascontiguousarray(data).reshape(-1).view(self.block.dtype)
        codes = CODE_LAYOUTS[self.block.name].unpack(blocks)
        return self._grid(blocks, n_rows), codes.reshape(n_rows, n_columns)

    def nearest_levels(self, scaled: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The codes of the levels nearest to finite numbers, same shape."""
        if self.evenly_spaced:
            codes: NDArray[np.uint8] = np.rint(scaled - self.levels[0]).clip(0, len(self.levels) - 1).astype(np.uint8)
            return codes
        return nearest_iq4(scaled)

    def _rounded(self, grid: Grid | None, scales: Any, offsets: Any, weights: Any) -> Grid:
        self._check(scales, offsets, weights)
        scale = np.asarray(scales, np.float64).reshape(-1, self.n_groups_per_block)
        offset = np.zeros_like(scale) if offsets is None else np.asarray(offsets, np.float64).reshape(scale.shape)
        weight = np.ones_like(scale) if weights is None else np.asarray(weights, np.float64).reshape(scale.shape)
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large is refused below
            steps = self.scale_fields.choose_steps(scale, offset, weight) if grid is None else grid.steps
            columns = self.scale_fields.store(steps, scale, offset)
        blocks = np.zeros(len(scale), self.block.dtype)
        for name, items in columns.items():
            blocks[name] = items
        self._check_finite(blocks, len(scales))
        return self._grid(blocks, len(scales))

    def _grid(self, blocks: Blocks, n_rows: int) -> Grid:
        with np.errstate(invalid="ignore", over="ignore"):  # scales of a file may be infinite or not a number; they stay so
            scales, offsets = self.scale_fields.read(blocks)
        # Copies, because a view would keep the codes of the blocks in memory.
        fields = {name: blocks[name].reshape(n_rows, -1, *blocks[name].shape[1:]).copy() for name in self.scale_fields.names}
        return Grid(self, scales.reshape(n_rows, -1), None if offsets is None else offsets.reshape(n_rows, -1), fields)

    def _check(self, scales: Any, offsets: Any, weights: Any) -> None:
        name, step = self.block.name, self.n_groups_per_block
        if (offsets is not None) != self.has_offset:
            raise InvalidRequestError(f"{name} groups have {'an offset each: give offsets' if self.has_offset else 'no offset: give None'}")
        if scales.ndim != 2 or not scales.size or scales.shape[1] % step:
            raise InvalidRequestError(f"{name} scales must be [n_rows, n_groups], groups in multiples of {step}, not {list(scales.shape)}")
        for what, values in (("scales", scales), ("offsets", offsets), ("weights", weights)):
            if values is None:
                continue
            if values.shape != scales.shape:
                raise InvalidRequestError(f"{what} have shape {list(values.shape)}, but the scales {list(scales.shape)}")
            if not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
                raise InvalidRequestError(f"{what} of row {row} are infinite or not a number; check the tensor and the calibration")

        if weights is not None and weights.min() < 0:
            raise InvalidRequestError("weights of groups must be 0 or more")

    def _check_finite(self, blocks: Blocks, n_rows: int) -> None:
        for name in self.scale_fields.names:
            bad = np.flatnonzero(~np.isfinite(blocks[name].reshape(n_rows, -1)).all(axis=1))
            if bad.size:
                raise InvalidRequestError(
                    f"row {bad[0]}: a scale or offset is too large for {self.block.name}, whose {name} is a float16 of at most 65504; "
                    "scale the weights down, or keep the tensor in bf16"
                )


@dataclass(frozen=True, eq=False)
class Grid:
    """The scales and offsets of one matrix, as its format stores them.

    Attributes:
        format: whose grid it is.
        scales: float32 [n_rows, n_groups].
        offsets: float32 [n_rows, n_groups], or None where the format has none.
        fields: the fields of the blocks behind them, by their names in the declaration, [n_rows, n_blocks_per_row] or
            [n_rows, n_blocks_per_row, items].
    """

    format: GridFormat
    scales: NDArray[np.float32]
    offsets: NDArray[np.float32] | None
    fields: Mapping[str, NDArray[Any]]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.scales.shape[0], self.scales.shape[1] * self.format.group_size

    @property
    def steps(self) -> dict[str, NDArray[np.float16]]:
        """The float16 fields, one item per block, [n_blocks]."""
        return {name: items.reshape(-1) for name, items in self.fields.items() if items.dtype == np.float16}

    def columns(self, start: int, end: int) -> Grid:
        """The grid of some columns, which must be whole blocks.

        Raises:
            InvalidRequestError: they are not.
        """
        n_elements, size = self.format.block.n_elements, self.format.group_size
        if start % n_elements or end % n_elements:
            raise InvalidRequestError(f"columns {start} to {end} are not whole {self.format.block.name} blocks of {n_elements}")
        groups, blocks = slice(start // size, end // size), slice(start // n_elements, end // n_elements)
        offsets = None if self.offsets is None else self.offsets[:, groups]
        return Grid(self.format, self.scales[:, groups], offsets, {name: items[:, blocks] for name, items in self.fields.items()})

    def values(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """scale * level[code] + offset, float32 [n_rows, n_columns]: to the bit what the packed blocks decode to.

        Raises:
            InvalidRequestError: codes of another shape, or beyond the last level.
        """
        self._check_codes(codes)
        values = self.format.levels[codes].reshape(*self.scales.shape, -1)
        with np.errstate(invalid="ignore", over="ignore"):
            values *= self.scales[..., None]
            if self.offsets is not None:
                values += self.offsets[..., None]
        return values.reshape(codes.shape)

    def nearest(self, weights: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
        """The code of the level nearest to each weight, uint8 [n_rows, n_columns]; where the scale is 0, of the level nearest to 0.

        Raises:
            InvalidRequestError: weights of another shape, or not finite.
        """
        if weights.shape != self.shape:
            raise InvalidRequestError(f"weights have shape {list(weights.shape)}, but the grid {list(self.shape)}")
        if not np.isfinite(weights).all():
            raise InvalidRequestError("weights are infinite or not a number; a quantized file cannot hold them")
        scaled = weights.astype(np.float32).reshape(*self.scales.shape, -1)
        if self.offsets is not None:
            scaled -= self.offsets[..., None]
        with np.errstate(over="ignore"):
            scaled = np.divide(scaled, self.scales[..., None], out=np.zeros_like(scaled), where=self.scales[..., None] != 0)
        return self.format.nearest_levels(scaled).reshape(weights.shape)

    def pack(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The blocks as a GGUF file holds them, uint8 [bytes].

        Raises:
            InvalidRequestError: codes of another shape, or beyond the last level.
        """
        self._check_codes(codes)
        block = self.format.block
        columns = CODE_LAYOUTS[block.name].pack(np.ascontiguousarray(codes).reshape(-1, block.n_elements))
        blocks = np.empty(codes.size // block.n_elements, block.dtype)
        for name, items in {**columns, **self.fields}.items():
            blocks[name] = items.reshape(blocks[name].shape)
        return blocks.view(np.uint8)

    @staticmethod
    def joined(grids: Sequence[Grid]) -> Grid:
        """Grids of neighbouring columns, as one; the inverse of `columns`."""
        offsets = [grid.offsets for grid in grids if grid.offsets is not None]
        return Grid(
            grids[0].format,
            np.concatenate([grid.scales for grid in grids], axis=1),
            np.concatenate(offsets, axis=1) if offsets else None,
            {name: np.concatenate([grid.fields[name] for grid in grids], axis=1) for name in grids[0].fields},
        )

    def _check_codes(self, codes: NDArray[np.uint8]) -> None:
        if codes.dtype != np.uint8 or codes.shape != self.shape:
            raise InvalidRequestError(f"codes are {codes.dtype} {list(codes.shape)}, but the grid needs uint8 {list(self.shape)}")
        if codes.size and codes.max() >= len(self.format.levels):
            raise InvalidRequestError(f"code {codes.max()} is beyond the {len(self.format.levels)} levels of {self.format.block.name}")
