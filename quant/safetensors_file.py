"""A safetensors file, memory-mapped.

The safetensors library reads and checks the header: lengths, offsets, shapes, and that the tensors fill the file without gap or overlap.
From that follows where each tensor lies, so that it can be viewed in place instead of copied.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.blocks import BF16, F16, F32, BlockFormat
from edgelm.quant.mapped_file import MappedFile
from edgelm.quant.model_file import Tensor

DTYPES: Mapping[str, BlockFormat] = MappingProxyType({"F32": F32, "F16": F16, "BF16": BF16})
INTEGER_DTYPES: Mapping[str, str] = MappingProxyType({"I8": "i1", "U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"})
_HEADER_LENGTH = struct.Struct("<Q")


class SafetensorsFile:
    """What one file holds, under the names it gives.

    Attributes:
        tensors: those of F32, F16 or BF16.
        integers: the others, as read-only arrays in their shapes; they are packed codes, indices and the like, and no model's weights.

    Raises:
        ModelFileError: the file is missing, cannot be read, is cut short or contradicts itself.
        UnsupportedModelError: a tensor of another type.
    """

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path)
        try:
            tensors, integers = _read(self._file)
        except BaseException:
            self._file.close()
            raise
        self.tensors: Mapping[str, Tensor] = MappingProxyType(tensors)
        self.integers: Mapping[str, NDArray[Any]] = MappingProxyType(integers)

    def drop_pages(self) -> None:
        """As MappedFile.drop_pages."""
        self._file.drop_pages()

    def close(self) -> None:
        """As MappedFile.close."""
        self.tensors = MappingProxyType({})
        self.integers = MappingProxyType({})
        self._file.close()


def _read(file: MappedFile) -> tuple[dict[str, Tensor], dict[str, NDArray[Any]]]:
    try:
        with safe_open(file.path, framework="numpy") as header:
            names = header.offset_keys()
            slices = [header.get_slice(name) for name in names]
            rows = [(name, s.get_dtype(), tuple(s.get_shape())) for name, s in zip(names, slices, strict=True)]
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file.path}: not a sound safetensors file ({error}); fetch it again") from None
    tensors: dict[str, Tensor] = {}
    integers: dict[str, NDArray[Any]] = {}
    offset = _HEADER_LENGTH.size + _HEADER_LENGTH.unpack_from(file.data)[0]
    for name, dtype, shape in rows:
        if dtype in INTEGER_DTYPES:
            n_bytes = math.prod(shape) * np.dtype(INTEGER_DTYPES[dtype]).itemsize
            integers[name] = file.view(offset, n_bytes).view(INTEGER_DTYPES[dtype]).reshape(shape)
        elif dtype in DTYPES:
            n_bytes = DTYPES[dtype].nbytes(shape)
            tensors[name] = Tensor(name, shape, DTYPES[dtype], file.view(offset, n_bytes))
        else:
            raise UnsupportedModelError(f"{file.path}: the tensor {name!r} has the type {dtype}; edgelm reads {', '.join(DTYPES)}")
        offset += n_bytes
    return tensors, integers
