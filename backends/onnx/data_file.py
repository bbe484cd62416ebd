"""The file beside a graph that holds its large constants, written one after the other so that no two need be in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import onnx
from numpy.typing import NDArray

_ALIGNMENT = 4096  # bytes: a page, so that constants can be mapped


class DataFile:
    """Constants in ONNX's external data format. Several graphs in the same folder may refer to one file. Use it in a `with` statement.

    Args:
        path: the file to write; graphs that refer to it must lie in the same folder.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file: IO[bytes] = path.open("wb")
        self._stored: dict[str, onnx.TensorProto] = {}

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def find(self, name: str) -> onnx.TensorProto | None:
        """The initializer stored under this name, or None."""
        return self._stored.get(name)

    def store(self, name: str, element_type: int, dims: Sequence[int], values: NDArray[Any]) -> onnx.TensorProto:
        """Write a constant's bytes, in C order; the initializer that refers to them."""
        start = self._file.tell()
        start += -start % _ALIGNMENT
        self._file.seek(start)
        n_bytes = self._file.write(np.ascontiguousarray(values).data.cast("B"))
        tensor = onnx.TensorProto(name=name, data_type=element_type, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", self._name), ("offset", start), ("length", n_bytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._stored[name] = tensor
        return tensor
