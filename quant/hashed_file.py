"""Files that are written in chunks and known by their hash."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelFileError


def storage_error(error: OSError, place: Path) -> ModelFileError:
    """What to tell of a place that took no more bytes, in a folder whose finished work stays."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ModelFileError(
            f"{place} has no room left ({error.strerror}); free space there and give the same command again: what was finished is kept"
        )
    return ModelFileError(f"{place} cannot be written ({error.strerror or error}); correct its permissions, or choose another place")


class HashedFile:
    """A new file, written chunk by chunk.

    Attributes:
        path: must not exist yet.
        n_bytes: written so far.

    Raises:
        ModelFileError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.n_bytes = path, 0
        self._hash = hashlib.sha256()
        try:
            # Without a buffer, which would still hold bytes, and fail once more, when a full disk makes us close the file.
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise storage_error(error, path.parent) from error

    def write(self, chunk: NDArray[Any]) -> None:
        """Append an array's bytes in C order.

        Raises:
            ModelFileError: no room left, or the disk fails.
        """
        data = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
        written = 0
        try:
            while written < data.nbytes:
                written += self._file.write(data[written:])
        except OSError as error:
            raise storage_error(error, self.path.parent) from error
        self._hash.update(data)
        self.n_bytes += data.nbytes

    def finish(self) -> str:
        """Bring all bytes to the disk and close; gives their sha256.

        Raises:
            ModelFileError: no room left, or the disk fails.
        """
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise storage_error(error, self.path.parent) from error
        return self._hash.hexdigest()

    def discard(self) -> None:
        """Close and remove the file, finished or not."""
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


def check_hash(path: Path, n_bytes: int, sha256: str) -> None:
    """
    Raises:
        ModelFileError: the file is missing or unreadable, or has other bytes.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror or error})") from error
    if size != n_bytes:
        raise ModelFileError(f"{path} has {size} bytes instead of {n_bytes}")
    if found != sha256:
        raise ModelFileError(f"{path} has other bytes than were written to it: its sha256 is {found[:12]}..., not {sha256[:12]}...")
