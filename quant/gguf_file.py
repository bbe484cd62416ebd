"""A GGUF file, memory-mapped."""

from __future__ import annotations

import contextlib
import mmap
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np

from edgelm.errors import ClosedError, ModelFileError
from edgelm.quant.gguf_header import TensorInfo, read_header
from edgelm.quant.model_file import Tensor


class GGUFFile:
    """A model in one GGUF file of version 2 or 3, little-endian; a ModelFile.

    Tensors are views into the mapping, so that opening reads only the header. The file must not change while it is open.

    Raises:
        ModelFileError: the file is missing, cannot be read, is cut short or contradicts itself.
        UnsupportedModelError: a sound file, but of a version or with a tensor type that edgelm does not read.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._map: mmap.mmap | None = _map_file(self._path)
        try:
            header = read_header(self._map, self._path)
            self._metadata = header.metadata
            self._tensors = MappingProxyType({info.name: _view(self._map, info) for info in header.tensors})
        except BaseException:
            _unmap(self._map)
            raise

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Values under their keys; still there after close."""
        return self._metadata

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Tensors in file order, by name.

        Raises:
            ClosedError: the file was closed.
        """
        self._open_map()
        return self._tensors

    def drop_pages(self) -> None:
        """Take the pages read so far out of resident memory; the next access reads them again. Linux only, elsewhere without effect.

        Raises:
            ClosedError: the file was closed.
        """
        mapping = self._open_map()
        if sys.platform == "linux":
            mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Give the mapping up; closing twice is allowed.

        Tensors that a caller still holds stay valid, and the mapping goes with the last of them.
        """
        mapping, self._map = self._map, None
        self._tensors = MappingProxyType({})
        if mapping is not None:
            _unmap(mapping)

    def _open_map(self) -> mmap.mmap:
        if self._map is None:
            raise ClosedError(f"{self._path} was closed; open it again")
        return self._map


def _view(mapping: mmap.mmap, info: TensorInfo) -> Tensor:
    return Tensor(info.name, info.shape, info.format, np.frombuffer(mapping, np.uint8, info.n_bytes, info.offset))


def _unmap(mapping: mmap.mmap) -> None:
    # While a view of it lives the mapping refuses to close; Python unmaps it with the last view, as nothing else refers to it.
    with contextlib.suppress(BufferError):
        mapping.close()


def _map_file(path: Path) -> mmap.mmap:
    """The whole file, read-only."""
    try:
        # Asked before opening: opening a pipe would wait for a writer.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ModelFileError(f"{path}: this is {kind}; give the path of a .gguf file")
        if status.st_size == 0:
            raise ModelFileError(f"{path}: the file is empty; fetch it again")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such file; check the path, or fetch the model with `edgelm pull`") from None
    except PermissionError:
        raise ModelFileError(f"{path}: no permission to read the file; change its mode or its owner") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: the file cannot be mapped into memory ({error})") from error
