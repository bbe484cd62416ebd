"""Arrays put aside on the disk for the length of one run, so that memory holds only those at work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelFileError

Array = NDArray[np.float32]


class Scratch:
    """Float32 arrays by key in one nameless file, which vanishes with the process, however that ends. A context manager.

    Args:
        folder: where the file is made.

    Raises:
        ModelFileError: no file can be made there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[object, tuple[int, int, tuple[int, ...]]] = {}
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._failure(error) from error

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def put(self, key: object, array: Array) -> None:
        """Store an array; one of the same key is replaced.

        Raises:
            ModelFileError: the disk is full, or fails.
        """
        start, room, _ = self._places.pop(key, (0, -1, ()))
        try:
            if array.nbytes > room:
                start, room = self._file.seek(0, os.SEEK_END), array.nbytes
            self._file.seek(start)
            data = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint8).data
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise self._failure(error) from error
        self._places[key] = start, room, array.shape

    def get(self, key: object) -> Array:
        """The array of that key, as a new one.

        Raises:
            ModelFileError: the disk fails.
        """
        start, _, shape = self._places[key]
        array = np.empty(shape, np.float32)
        room = array.reshape(-1).view(np.uint8).data
        try:
            self._file.seek(start)
            while room:
                n_read = self._file.readinto(room)
                if not n_read:
                    raise self._failure(OSError("the file ends too early"))
                room = room[n_read:]
        except OSError as error:
            raise self._failure(error) from error
        return array

    def mapped(self, key: object) -> Array:
        """The array of that key, read from the disk as it is looked at; it must not be stored anew meanwhile.

        Raises:
            ModelFileError: the disk fails.
        """
        start, _, shape = self._places[key]
        try:
            return np.memmap(self._file, np.float32, "r", start, shape)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> ModelFileError:
        return ModelFileError(f"{self._folder}: intermediate results cannot be kept there ({error.strerror or error}); free space")
