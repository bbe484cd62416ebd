"""A safetensors file, memory-mapped.

The safetensors library reads and checks the header: lengths, offsets, shapes, and that the tensors fill the file without gap or overlap.
From that follows where each tensor lies, so that it can be viewed in place instead of copied.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from safetensors import SafetensorError, safe_open

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.blocks import BF16, F16, F32, BlockFormat
from edgelm.quant.mapped_file import MappedFile
from edgelm.quant.model_file import Tensor

DTYPES: Mapping[str, BlockFormat] = MappingProxyType({"F32": F32, "F16": F16, "BF16": BF16})
_HEADER_LENGTH = struct.Struct("<Q")


class SafetensorsFile:
    """The tensors of one file, under the names it gives them.

    Raises:
        ModelFileError: the file is missing, cannot be read, is cut short or contradicts itself.
        UnsupportedModelError: a tensor is not F32, F16 or BF16.
    """

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path)
        try:
            self.tensors: Mapping[str, Tensor] = MappingProxyType(_read(self._file))
        except BaseException:
            self._file.close()
            raise

    def drop_pages(self) -> None:
        """As MappedFile.drop_pages."""
        self._file.drop_pages()

    def close(self) -> None:
        """As MappedFile.close."""
        self.tensors = MappingProxyType({})
        self._file.close()


def _read(file: MappedFile) -> dict[str, Tensor]:
    try:
        with safe_open(file.path, framework="numpy") as header:
            names = header.offset_keys()
            slices = [header.get_slice(name) for name in names]
            rows = [(name, s.get_dtype(), tuple(s.get_shape())) for name, s in zip(names, slices, strict=True)]
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file.path}: not a sound safetensors file ({error}); fetch it again") from None
    tensors: dict[str, Tensor] = {}
    offset = _HEADER_LENGTH.size + _HEADER_LENGTH.unpack_from(file.data)[0]
    for name, dtype, shape in rows:
        block_format = DTYPES.get(dtype)
        if block_format is None:
            raise UnsupportedModelError(f"{file.path}: the tensor {name!r} has the type {dtype}; edgelm reads {', '.join(DTYPES)}")
        n_bytes = block_format.nbytes(shape)
        tensors[name] = Tensor(name, shape, block_format, file.view(offset, n_bytes))
        offset += n_bytes
    return tensors
