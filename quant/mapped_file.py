"""A file mapped into memory for reading, handed out as views."""

from __future__ import annotations

import contextlib
import errno
import mmap
import stat
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ClosedError, InsufficientMemoryError, ModelFileError


class MappedFile:
    """The bytes of a regular file. The file must not change while it is mapped.

    Raises:
        ModelFileError: the file is missing, empty, not a regular file, or cannot be read.
        InsufficientMemoryError: the process may not map that much.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = _map(path)

    @property
    def data(self) -> mmap.mmap:
        """The whole file.

        Raises:
            ClosedError: the file was closed.
        """
        if self._map is None:
            raise ClosedError(f"{self.path} was closed; open it again")
        return self._map

    def view(self, offset: int, n_bytes: int) -> NDArray[np.uint8]:
        """Bytes of the file without a copy, uint8 [n_bytes], read-only; they must lie within the file."""
        return np.frombuffer(self.data, np.uint8, n_bytes, offset)

    def drop_pages(self) -> None:
        """Take the pages read so far out of resident memory; the next access reads them again. Linux only, elsewhere without effect."""
        mapping = self.data
        if sys.platform == "linux":
            mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Give the mapping up; closing twice is allowed. Views stay valid, and the mapping goes with the last of them."""
        mapping, self._map = self._map, None
        if mapping is not None:
            # While a view lives the mapping refuses to close; Python unmaps it with the last view, as nothing else refers to it.
            with contextlib.suppress(BufferError):
                mapping.close()


def _map(path: Path) -> mmap.mmap:
    try:
        # Asked before opening: opening a pipe would wait for a writer.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ModelFileError(f"{path}: this is {kind}; give the path of a model file")
        if status.st_size == 0:
            raise ModelFileError(f"{path}: the file is empty; fetch it again")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such file; check the path, or fetch the model again") from None
    except PermissionError:
        raise ModelFileError(f"{path}: no permission to read the file; change its mode or its owner") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise InsufficientMemoryError(
                f"{path}: no room in this process's memory to map its {status.st_size / 1e6:,.0f} MB; raise the limit (`ulimit -v`)"
            ) from error
        raise ModelFileError(f"{path}: the file cannot be mapped into memory ({error}); check the path") from error
