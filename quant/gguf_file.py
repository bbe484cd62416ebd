"""A GGUF file, memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from edgelm.errors import ClosedError
from edgelm.quant.gguf_header import read_header
from edgelm.quant.mapped_file import MappedFile
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
        self._file = MappedFile(self._path)
        try:
            header = read_header(self._file.data, self._path)
            self._metadata = header.metadata
            self._tensors: Mapping[str, Tensor] | None = MappingProxyType(
                {t.name: Tensor(t.name, t.shape, t.format, self._file.view(t.offset, t.n_bytes)) for t in header.tensors}
            )
        except BaseException:
            self._file.close()
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
        if self._tensors is None:
            raise ClosedError(f"{self._path} was closed; open it again")
        return self._tensors

    def drop_pages(self) -> None:
        """Take the pages read so far out of resident memory; the next access reads them again. Linux only, elsewhere without effect.

        Raises:
            ClosedError: the file was closed.
        """
        self._file.drop_pages()

    def close(self) -> None:
        """Give the mapping up; closing twice is allowed.

        Tensors that a caller still holds stay valid, and the mapping goes with the last of them.
        """
        self._tensors = None
        self._file.close()
