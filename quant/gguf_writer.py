"""Writes a GGUF file of any size in little memory: tensors come as chunks of bytes. The layout is that of ggml/docs/gguf.md."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.gguf_header import ARRAY, BOOL, SCALAR_TYPES, STRING

_VERSION = 3
_TYPE_IDS = {dtype: type_id for type_id, dtype in SCALAR_TYPES.items()}

MetadataValue = bool | int | float | str | Sequence[str] | NDArray[Any]


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written.

    Attributes:
        shape: slowest dimension first.
        chunks: gives its bytes, in order; called once.
    """

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    chunks: Callable[[], Iterable[NDArray[np.uint8]]]


def entry(key: str, value: MetadataValue) -> bytes:
    """One metadata entry.

    An int becomes uint32, or int64 or uint64 where it does not fit; a float becomes float32, which is what llama.cpp reads;
    a list of strings and a numpy array [n] become arrays.

    Raises:
        InvalidRequestError: the value has a type that GGUF does not hold.
    """
    head = _string(key)
    if isinstance(value, str):
        return head + struct.pack("<I", STRING) + _string(value)
    if isinstance(value, bool | int | float):
        type_id = _scalar_type(value)
        return head + struct.pack("<I", type_id) + np.array(value, SCALAR_TYPES[type_id]).tobytes()
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.newbyteorder("<") in _TYPE_IDS:
        little = value.astype(value.dtype.newbyteorder("<"))
        return head + struct.pack("<IIQ", ARRAY, _TYPE_IDS[little.dtype], len(value)) + little.tobytes()
    if isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
        return head + struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(_string(item) for item in value)
    raise InvalidRequestError(
        f"the metadata value {key} is a {type(value).__name__}, which GGUF does not hold; give numbers, text, or arrays of them"
    )


def _scalar_type(value: bool | int | float) -> int:
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return _TYPE_IDS[np.dtype("<u4" if 0 <= value < 2**32 else "<u8" if value >= 2**63 else "<i8")]
    return _TYPE_IDS[np.dtype("<f4")]


def write_gguf(path: Path, metadata: bytes, n_entries: int, tensors: Sequence[TensorSource], alignment: int = 32) -> None:
    """Write the file beside its place and move it there when it is whole, so that no partial file is ever seen.

    Args:
        metadata: n_entries encoded entries, one after the other.
        alignment: as the metadata's general.alignment says; 32 where it says nothing.

    Raises:
        ModelFileError: the file cannot be written, or a tensor's chunks are not as many bytes as its shape and format take.
    """
    head = _head(metadata, n_entries, tensors, alignment)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", suffix=".partial", delete=False) as file:
            partial = Path(file.name)
            try:
                file.write(head.ljust(_aligned(len(head), alignment), b"\0"))
                for tensor in tensors:
                    _write_tensor(file, tensor, alignment)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written ({error.strerror or error}); free space there, or choose another place") from error


def file_bytes(metadata: bytes, n_entries: int, tensors: Sequence[TensorSource], alignment: int = 32) -> int:
    """How large the file of write_gguf is."""
    head = _head(metadata, n_entries, tensors, alignment)
    return _aligned(len(head), alignment) + sum(_aligned(tensor.format.nbytes(tensor.shape), alignment) for tensor in tensors)


def _head(metadata: bytes, n_entries: int, tensors: Sequence[TensorSource], alignment: int) -> bytes:
    table, offset = b"", 0
    for tensor in tensors:
        table += _string(tensor.name) + struct.pack("<I", len(tensor.shape)) + struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape[::-1])
        table += struct.pack("<IQ", tensor.format.type_id, offset)
        offset += _aligned(tensor.format.nbytes(tensor.shape), alignment)
    return b"GGUF" + struct.pack("<IQQ", _VERSION, len(tensors), n_entries) + metadata + table


def _write_tensor(file: IO[bytes], tensor: TensorSource, alignment: int) -> None:
    wanted, written = tensor.format.nbytes(tensor.shape), 0
    for chunk in tensor.chunks():
        written += file.write(chunk.tobytes())
    if written != wanted:
        raise ModelFileError(f"tensor {tensor.name} was given {written} bytes, but takes {wanted}")
    file.write(b"\0" * (_aligned(wanted, alignment) - wanted))


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _aligned(size: int, alignment: int) -> int:
    return (size + alignment - 1) // alignment * alignment
