"""A lock on a folder that only one process holds, and that the system releases when the process dies, however it dies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from edgelm.errors import InvalidRequestError


class FolderLock:
    """An exclusive lock by way of a file, which holds the process's number for people to read.

    Raises:
        InvalidRequestError: another process, or another place of this one, holds the lock.
        OSError: the file cannot be made or locked.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] | None = None
        while self._file is None:
            file = path.open("a+b", buffering=0)
            try:
                _lock(file, path)
                # The last holder may have removed the file after it was opened here: then it locks nothing that others see.
                if _is_same(file, path):
                    file.truncate(0)
                    file.write(str(os.getpid()).encode())
                    self._file = file
            finally:
                if self._file is None:
                    file.close()

    def release(self) -> None:
        """Give the lock up; twice is allowed."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _lock(file: IO[bytes], path: Path) -> None:
    import fcntl  # not on every system

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(20).decode("ascii", "replace") or "unknown"
        raise InvalidRequestError(
            f"another process (number {holder}) is working in {path.parent}; wait until it is done, or write to another place"
        ) from None


def _is_same(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
