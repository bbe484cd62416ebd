"""A checkpoint on its way to the disk: arrays that grow by rows, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.hashed_file import HashedFile
from edgelm.quant.work_manifest import DTYPE, StoredArray


class StateWriter:
    """Takes the arrays of a checkpoint, in chunks of rows, in any order of the arrays.

    Args:
        new_path: gives a file that does not exist yet.
    """

    def __init__(self, new_path: Callable[[], Path]) -> None:
        self._new_path = new_path
        self._arrays: dict[str, tuple[HashedFile, np.dtype[Any], tuple[int, ...], int]] = {}

    def append(self, name: str, chunk: NDArray[Any]) -> None:
        """Append rows [n, ...] to the array of that name; all its chunks have one type and one shape of rows.

        Raises:
            InvalidRequestError: the chunk is no array of numbers with rows, or unlike those before.
            ModelFileError: no room left, or the disk fails.
        """
        if chunk.ndim == 0 or DTYPE.fullmatch(chunk.dtype.str) is None:
            raise InvalidRequestError(f"{name}: a {chunk.dtype} of shape {chunk.shape} cannot be stored; give rows of plain numbers")
        if name not in self._arrays:
            self._arrays[name] = (HashedFile(self._new_path()), chunk.dtype, chunk.shape[1:], 0)
        file, dtype, row, n_rows = self._arrays[name]
        if (chunk.dtype, chunk.shape[1:]) != (dtype, row):
            raise InvalidRequestError(f"{name}: rows {chunk.shape[1:]} of {chunk.dtype} cannot follow rows {row} of {dtype}")
        file.write(chunk)
        self._arrays[name] = (file, dtype, row, n_rows + len(chunk))

    def finish(self) -> Mapping[str, StoredArray]:
        """Bring everything to the disk.

        Raises:
            ModelFileError: no room left, or the disk fails.
        """
        return {
            name: StoredArray(dtype, (n_rows, *row), file.path, file.finish()) for name, (file, dtype, row, n_rows) in self._arrays.items()
        }

    def discard(self) -> None:
        """Remove everything written."""
        for file, *_ in self._arrays.values():
            file.discard()
