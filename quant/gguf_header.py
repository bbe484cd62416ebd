"""Reading the header of a GGUF file: metadata and the table of tensors.

The layout is that of ggml/docs/gguf.md. Nothing in the file is trusted: each count, length and offset is compared with the bytes that
are there before anything is allocated for it.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.blocks import FORMAT_BY_ID, BlockFormat

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_KEY_BYTES = 65535
MAX_NAME_BYTES = 64

# Value types of the metadata: number to numpy type. Two more have no fixed size.
SCALAR_TYPES: Mapping[int, np.dtype[Any]] = MappingProxyType(
    {
        type_id: np.dtype(name)
        for type_id, name in {
            0: "u1",
            1: "i1",
            2: "<u2",
            3: "<i2",
            4: "<u4",
            5: "<i4",
            6: "<f4",
            7: "?",
            10: "<u8",
            11: "<i8",
            12: "<f8",
        }.items()
    }
)
BOOL, STRING, ARRAY = 7, 8, 9

# Tensor types that edgelm does not read, to say which one a file asks for.
FOREIGN_TYPES: Mapping[int, str] = MappingProxyType(
    {
        9: "Q8_1",
        10: "Q2_K",
        11: "Q3_K",
        15: "Q8_K",
        16: "IQ2_XXS",
        17: "IQ2_XS",
        18: "IQ3_XXS",
        19: "IQ1_S",
        21: "IQ3_S",
        22: "IQ2_S",
        24: "I8",
        25: "I16",
        26: "I32",
        27: "I64",
        28: "F64",
        29: "IQ1_M",
        34: "TQ1_0",
        35: "TQ2_0",
        39: "MXFP4",
        40: "NVFP4",
        41: "Q1_0",
    }
)

_MIN_ENTRY_BYTES = 8 + 4 + 1  # key length, value type, value
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # name length, dimension count, one dimension, type, offset

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


Bytes = bytes | mmap.mmap


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        shape: slowest dimension first (the file has it the other way round).
        offset: bytes from the start of the file.
        n_bytes: bytes of its blocks.
    """

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """Metadata, as described at ModelFile, and the tensors in file order.

    Attributes:
        n_entries, metadata_start, metadata_end: the count of metadata entries, and the bytes of the file that hold them.
    """

    version: int
    alignment: int
    n_entries: int
    metadata_start: int
    metadata_end: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]


def read_header(data: Bytes, path: Path) -> Header:
    """Read and check the header; `data` is the whole file, `path` is for messages.

    Raises:
        ModelFileError: not a GGUF file, cut short, or contradicting itself.
        UnsupportedModelError: a version, value type, tensor type or split file that edgelm does not read.
    """
    return _HeaderReader(data, path).read()


class _HeaderReader:
    """A cursor over the file that never leaves it."""

    def __init__(self, data: Bytes, path: Path) -> None:
        self._data = data
        self._size = len(data)
        self._path = path
        self._at = 0

    def read(self) -> Header:
        version = self._read_version()
        n_tensors, n_entries = self._u64("the tensor count"), self._u64("the metadata count")
        self._check_count(n_entries, _MIN_ENTRY_BYTES, "metadata entries")
        self._check_count(n_tensors, _MIN_TENSOR_BYTES, "tensors")
        metadata: dict[str, Any] = {}
        metadata_start = self._at
        for _ in range(n_entries):
            self._read_entry(metadata)
        metadata_end = self._at
        if metadata.get("split.count", 0) not in (0, 1):
            raise UnsupportedModelError(
                f"{self._path}: this is one part of a model split into {metadata['split.count']} files; "
                "join them with `llama-gguf-split --merge` and open the result"
            )
        alignment = self._alignment(metadata)
        tensors = self._read_tensors(n_tensors, alignment)
        return Header(version, alignment, n_entries, metadata_start, metadata_end, MappingProxyType(metadata), tensors)

    # -- errors -----------------------------------------------------------------------------------------------------------------------

    def _bad(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self._path}: {what}; the file is damaged, fetch it again")

    def _truncated(self, where: str) -> ModelFileError:
        return ModelFileError(f"{self._path}: the file ends after {self._size} bytes, inside {where}; it was cut short, fetch it again")

    def _check_count(self, count: int, least_bytes: int, what: str) -> None:
        left = self._size - self._at
        if count * least_bytes > left:
            raise self._bad(f"it declares {count} {what}, but only {left} bytes follow")

    # -- plain values -----------------------------------------------------------------------------------------------------------------

    def _skip(self, n_bytes: int, where: str) -> int:
        """Move past n_bytes, if the file has them, and return where they start."""
        start = self._at
        if n_bytes > self._size - start:
            raise self._truncated(where)
        self._at = start + n_bytes
        return start

    def _u32(self, where: str) -> int:
        value: int = _U32.unpack_from(self._data, self._skip(4, where))[0]
        return value

    def _u64(self, where: str) -> int:
        value: int = _U64.unpack_from(self._data, self._skip(8, where))[0]
        return value

    def _string(self, where: str) -> str:
        return self._decoded(self._u64(where), where)

    def _name(self, where: str, longest: int) -> str:
        n_bytes = self._u64(where)
        if not 0 < n_bytes <= longest:
            raise self._bad(f"{where} has {n_bytes} bytes, not 1 to {longest}")
        return self._decoded(n_bytes, where)

    def _decoded(self, n_bytes: int, where: str) -> str:
        start = self._skip(n_bytes, where)
        # Invalid UTF-8 becomes lone surrogates, from which the bytes can be had back.
        return self._data[start : start + n_bytes].decode("utf-8", "surrogateescape")

    def _strings(self, count: int, where: str) -> list[str]:
        """As _string, count times; written out because vocabularies have hundreds of thousands."""
        self._check_count(count, 8, f"strings in {where}")
        data, size, at, read_length = self._data, self._size, self._at, _U64.unpack_from
        strings: list[str] = []
        for _ in range(count):
            if at + 8 > size:
                raise self._truncated(where)
            end = at + 8 + read_length(data, at)[0]
            if end > size:
                raise self._truncated(where)
            strings.append(data[at + 8 : end].decode("utf-8", "surrogateescape"))
            at = end
        self._at = at
        return strings

    def _numbers(self, type_id: int, count: int, where: str) -> NDArray[Any]:
        dtype = SCALAR_TYPES[type_id]
        self._check_count(count, dtype.itemsize, f"values in {where}")
        start = self._skip(count * dtype.itemsize, where)
        if type_id == BOOL:
            truths = np.frombuffer(self._data, np.uint8, count, start)
            if (truths > 1).any():
                raise self._bad(f"{where} has a truth value that is neither 0 nor 1")
        return np.frombuffer(self._data, dtype, count, start).copy()

    # -- metadata ---------------------------------------------------------------------------------------------------------------------

    def _read_version(self) -> int:
        magic = self._data[0:4]
        if magic != MAGIC:
            raise ModelFileError(
                f"{self._path}: not a GGUF file (it starts with {magic!r}, not {MAGIC!r}); "
                "give the path of a .gguf file or of a Hugging Face folder"
            )
        self._at = 4
        version = self._u32("the version")
        if version in VERSIONS:
            return version
        if version & 0xFFFF == 0 and version:
            raise UnsupportedModelError(f"{self._path}: a big-endian GGUF file; edgelm reads little-endian ones, convert it")
        raise UnsupportedModelError(f"{self._path}: GGUF version {version}, but edgelm reads versions 2 and 3; convert it again")

    def _read_entry(self, metadata: dict[str, Any]) -> None:
        key = self._name("a metadata key", MAX_KEY_BYTES)
        where = f"the metadata value {_shown(key)}"
        if key in metadata:
            raise self._bad(f"the metadata key {_shown(key)} comes twice")
        metadata[key] = self._read_value(self._u32(where), where)

    def _read_value(self, type_id: int, where: str) -> Any:
        if type_id == STRING:
            return self._string(where)
        if type_id in SCALAR_TYPES:
            return self._numbers(type_id, 1, where)[0].item()
        if type_id != ARRAY:
            raise self._bad(f"{where} has the type {type_id}, which GGUF does not know")
        item_type, count = self._u32(where), self._u64(where)
        if item_type == STRING:
            return self._strings(count, where)
        if item_type in SCALAR_TYPES:
            return self._numbers(item_type, count, where)
        if item_type == ARRAY:
            raise UnsupportedModelError(f"{self._path}: {where} is an array of arrays, which edgelm does not read")
        raise self._bad(f"{where} is an array of the type {item_type}, which GGUF does not know")

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise self._bad(f"general.alignment is {_shown(alignment)}, not a power of two")
        return alignment

    # -- tensors ----------------------------------------------------------------------------------------------------------------------

    def _read_tensors(self, count: int, alignment: int) -> tuple[TensorInfo, ...]:
        """The table of tensors. Their data must follow each other in order, with alignment padding and nothing else between and after."""
        rows = [self._read_tensor_row() for _ in range(count)]
        data_start = _align(self._at, alignment)
        end, tensors, names = self._at, [], set()
        for name, shape, block_format, offset, n_bytes in rows:
            if name in names:
                raise self._bad(f"the tensor {_shown(name)} comes twice")
            names.add(name)
            expected = _align(end, alignment) - data_start
            if offset != expected:
                raise self._bad(f"the tensor {_shown(name)} is declared at offset {offset}, but its place is {expected}")
            end = data_start + offset + n_bytes
            if end > self._size:
                raise self._truncated(f"the tensor {_shown(name)}, which ends at byte {end}")
            tensors.append(TensorInfo(name, shape, block_format, data_start + offset, n_bytes))
        if self._size > _align(end, alignment):
            raise self._bad(f"{self._size - end} bytes follow the last tensor, where at most alignment padding belongs")
        return tuple(tensors)

    def _read_tensor_row(self) -> tuple[str, tuple[int, ...], BlockFormat, int, int]:
        name = self._name("a tensor name", MAX_NAME_BYTES)
        where = f"the tensor {_shown(name)}"
        n_dims = self._u32(where)
        if not 0 < n_dims <= MAX_DIMS:
            raise self._bad(f"{where} has {n_dims} dimensions, not 1 to {MAX_DIMS}")
        shape = tuple(self._u64(where) for _ in range(n_dims))[::-1]
        type_id, offset = self._u32(where), self._u64(where)
        block_format = FORMAT_BY_ID.get(type_id)
        if block_format is None:
            raise UnsupportedModelError(
                f"{self._path}: {where} has the type {FOREIGN_TYPES.get(type_id, f'number {type_id}')}; "
                f"edgelm reads {', '.join(f.name for f in FORMAT_BY_ID.values())}"
            )
        if math.prod(shape) == 0:
            raise self._bad(f"{where} has the shape {shape}, without a single value")
        if shape[-1] % block_format.n_elements:
            raise self._bad(f"{where} has rows of {shape[-1]} values, not whole {block_format.name} blocks of {block_format.n_elements}")
        return name, shape, block_format, offset, block_format.nbytes(shape)


def _align(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment


def _shown(value: object) -> str:
    """A value from the file for a message: escaped, and not too long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
