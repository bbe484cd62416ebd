"""The system's cache of file pages: cold starts need it empty, and a record says how full it was."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import MeasurementError


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files, and those in the folders in the order of their names."""
    return [file for path in paths for file in (sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path])]


def evict(paths: Sequence[Path]) -> None:
    """Ask the system to drop the files' pages from its cache; folders with all that is in them.

    Pages that another process has mapped stay, and systems without posix_fadvise (macOS) keep all: ask cached_fraction what became of it.

    Raises:
        MeasurementError: a file cannot be read.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files_of(paths):
        try:
            with path.open("rb") as file:
                os.fsync(file.fileno())  # only clean pages are dropped
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise _unreadable(path, error) from error


def cached_fraction(paths: Sequence[Path]) -> float | None:
    """The fraction of the files' pages that is in the page cache, by mincore(2), which reads none of them.

    None for no pages at all, on other systems than Linux, and for files that belong to others and may not be written: of those Linux says
    that everything is there (since 5.2).

    Raises:
        MeasurementError: a file cannot be read.
    """
    if sys.platform != "linux":
        return None
    n_pages = n_cached = 0
    for path in files_of(paths):
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size == 0:
                    continue
                if status.st_uid != os.geteuid() and not os.access(path, os.W_OK):
                    return None
                with closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as pages:
                    resident = _mincore(pages)
        except OSError as error:
            raise _unreadable(path, error) from error
        n_pages += len(resident)
        n_cached += int(resident.sum())
    return n_cached / n_pages if n_pages else None


def _mincore(pages: mmap.mmap) -> NDArray[np.uint8]:
    """1 for each page that is in memory, 0 for the others."""
    resident = np.zeros(-(-len(pages) // mmap.PAGESIZE), np.uint8)
    address = np.frombuffer(pages, np.uint8).ctypes.data
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(pages)), ctypes.c_void_p(resident.ctypes.data)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    resident &= 1  # the other bits are reserved
    return resident


def _unreadable(path: Path, error: OSError) -> MeasurementError:
    return MeasurementError(f"{path} cannot be read ({error.strerror or error}); check the path and its permissions")
