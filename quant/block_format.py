"""What a number format is: a block of so many elements in so many bytes, its fields, and how values go in and out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError, ModelFileError

# Blocks converted at once: bounds the temporaries of a large tensor to a few megabytes and keeps them in the cache.
_CHUNK = 4096

Blocks = NDArray[np.void]  # structured array [n], one entry per field
Values = NDArray[Any]  # float32 [n, n_elements]
Columns = dict[str, NDArray[Any]]  # an array [n, ...] for each field


def column(blocks: Blocks, name: str) -> Values:
    """A float16 field that comes once per block, as float32 [n, 1]."""
    values: Values = blocks[name].astype(np.float32)[:, None]
    return values


@dataclass(frozen=True)
class Field:
    """Some bytes of a block.

    Attributes:
        name: as ggml's struct calls it ("d", "qs", ...).
        dtype: numpy type of one item, little-endian ("<f2", "u1", ...).
        offset: bytes from the start of the block.
        count: items.
    """

    name: str
    dtype: str
    offset: int
    count: int = 1


@dataclass(frozen=True)
class BlockFormat:
    """A number format, declared once; packers, kernels and exporters read this description.

    Attributes:
        name: as ggml calls it ("Q4_0").
        type_id: ggml's number of the type, as GGUF files store it.
        n_elements: values in one block.
        n_bytes: bytes of one block.
        fields: what the bytes are, in order and without gaps.
        decode: blocks [n] to values [n, n_elements].
        encode: values [n, n_elements] to the fields of blocks [n].
    """

    name: str
    type_id: int
    n_elements: int
    n_bytes: int
    fields: tuple[Field, ...]
    decode: Callable[[Blocks], Values]
    encode: Callable[[Values], Columns]

    def __post_init__(self) -> None:
        end = 0
        for field in self.fields:
            if field.offset != end:
                raise ValueError(f"{self.name}: field {field.name} is declared at byte {field.offset}, but the one before it ends at {end}")
            end += np.dtype(field.dtype).itemsize * field.count
        if end != self.n_bytes:
            raise ValueError(f"{self.name}: the fields take {end} bytes, but a block is declared to have {self.n_bytes}")

    def __repr__(self) -> str:
        return f"BlockFormat({self.name})"

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """Structured numpy type of one block, one entry per field."""
        return np.dtype([(f.name, f.dtype, (f.count,)) if f.count > 1 else (f.name, f.dtype) for f in self.fields])

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape (slowest dimension first).

        Raises:
            ModelFileError: the last dimension is not a whole number of blocks.
        """
        if shape and shape[-1] % self.n_elements:
            raise ModelFileError(
                f"rows of {shape[-1]} values cannot be {self.name}, which stores blocks of {self.n_elements}; "
                "choose a format whose blocks divide the row"
            )
        return math.prod(shape) // self.n_elements * self.n_bytes

    def dequantize(self, data: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The values of whole blocks, as a new float32 [n_values], element by element as ggml's reference computes them.

        Raises:
            ModelFileError: the bytes are not a whole number of blocks.
        """
        if data.size % self.n_bytes:
            raise ModelFileError(f"{data.size} bytes are not a whole number of {self.name} blocks of {self.n_bytes} bytes")
        blocks = np.ascontiguousarray(data).reshape(-1).view(self.dtype)
        if self.n_elements == 1:  # nothing to unpack, and chunks of single values would be slow
            return self.decode(blocks).reshape(-1)
        values = np.empty((len(blocks), self.n_elements), np.float32)
        # Scales in a file may be infinite or not a number; they then spread to their block, as in ggml.
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, len(blocks), _CHUNK):
                values[start : start + _CHUNK] = self.decode(blocks[start : start + _CHUNK])
        return values.reshape(-1)

    def quantize(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Blocks of the values in C order, uint8 [n_blocks * n_bytes].

        The 32-element formats round as ggml's reference does. The K-quants, IQ4_NL and IQ4_XS are a plain search, made to be read and to
        test with; ggml's own search is longer and a little better.

        Raises:
            InvalidRequestError: not a whole number of blocks, or a block's values cannot be scaled into float16.
        """
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        if flat.size % self.n_elements:
            raise InvalidRequestError(f"{flat.size} values are not a whole number of {self.name} blocks of {self.n_elements}")
        rows = flat.reshape(-1, self.n_elements)
        blocks = np.empty(len(rows), self.dtype)
        with np.errstate(all="ignore"):
            for start in range(0, len(rows), _CHUNK):
                for name, items in self.encode(rows[start : start + _CHUNK]).items():
                    blocks[name][start : start + _CHUNK] = items
        self._check_scales(blocks)
        return blocks.view(np.uint8).reshape(-1)

    def _check_scales(self, blocks: Blocks) -> None:
        if self.n_elements == 1:
            return
        for field in self.fields:
            if field.dtype == "<f2" and not np.isfinite(blocks[field.name]).all():
                raise InvalidRequestError(f"values that are infinite, not a number, or too large for float16 scales cannot be {self.name}")
