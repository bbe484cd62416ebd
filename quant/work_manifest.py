"""The list of what an unfinished quantization has done: finished tensors and the last checkpoint, as a JSON file."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.blocks import FORMATS
from edgelm.quant.fingerprint import Fingerprint
from edgelm.quant.json_file import JsonObject
from edgelm.quant.mapped_file import MappedFile

VERSION = 1
FILE = "manifest.json"
PARTIAL = f"{FILE}.partial"
DTYPE = re.compile(r"[<>|](b1|[iu][1248]|f[248])")
DATA_FILE = re.compile(r"[0-9]{6,9}\.bin")


@dataclass(frozen=True)
class FinishedTensor:
    """A tensor in its final form.

    Attributes:
        shape: slowest dimension first.
        path: file of the format's blocks.
        sha256: of that file.
        facts: error figures and the like, finite numbers and texts.
    """

    name: str
    format: BlockFormat
    shape: tuple[int, ...]
    path: Path
    sha256: str
    facts: Mapping[str, float | str]

    @property
    def n_bytes(self) -> int:
        return self.format.nbytes(self.shape)


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, to be read in pieces.

    Attributes:
        shape: [n_rows, ...].
        path: file of its bytes in C order.
        sha256: of that file.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    path: Path
    sha256: str

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def chunks(self, n_rows: int) -> Iterator[NDArray[Any]]:
        """The rows in order, as new arrays [n_rows, ...], the last of which may be shorter.

        Raises:
            ModelFileError: the file cannot be read, as when a later checkpoint has taken its place.
            InvalidRequestError: n_rows is below 1.
        """
        if n_rows < 1:
            raise InvalidRequestError(f"an array cannot be read in pieces of {n_rows} rows; give 1 or more")
        per_row = math.prod(self.shape[1:])
        try:
            with self.path.open("rb") as file:
                for start in range(0, self.shape[0], n_rows):
                    shape = (min(n_rows, self.shape[0] - start), *self.shape[1:])
                    values = np.fromfile(file, self.dtype, shape[0] * per_row)
                    if values.size != shape[0] * per_row:
                        raise ModelFileError(f"{self.path} is cut short; give --restart to begin again")
                    yield values.reshape(shape)
        except OSError as error:
            raise ModelFileError(f"{self.path} cannot be read ({error.strerror or error}); its checkpoint may be outdated") from error

    def mapped(self) -> NDArray[Any]:
        """The whole array, read-only: pages are read as they are used.

        Raises:
            ModelFileError: the file cannot be read, as when a later checkpoint has taken its place.
        """
        if not self.n_bytes:
            return np.empty(self.shape, self.dtype)
        return MappedFile(self.path).view(0, self.n_bytes).view(self.dtype).reshape(self.shape)

    def read(self) -> NDArray[Any]:
        """The whole array.

        Raises:
            ModelFileError: as for chunks.
        """
        return next(self.chunks(self.shape[0])) if self.shape[0] else np.empty(self.shape, self.dtype)


@dataclass(frozen=True)
class State:
    """A checkpoint: the step after which it was taken, and arrays by name."""

    step: str
    arrays: Mapping[str, StoredArray]


@dataclass(frozen=True)
class Manifest:
    """All that counts in a work folder; other data files in it are left-overs of a run that was cut off."""

    fingerprint: Fingerprint
    tensors: Mapping[str, FinishedTensor]
    state: State | None = None

    @property
    def is_empty(self) -> bool:
        return not self.tensors and self.state is None

    @property
    def files(self) -> list[FinishedTensor | StoredArray]:
        return [*self.tensors.values(), *(self.state.arrays.values() if self.state else ())]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put the manifest in the place of the one before, at once; what it lists must be on the disk already.

    Raises:
        OSError: it cannot be written; the one before stays.
    """
    partial = folder / PARTIAL
    try:
        with partial.open("wb", buffering=0) as file:
            data = memoryview(json.dumps(_fields(manifest), indent=1, allow_nan=False).encode())
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        partial.replace(folder / FILE)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """
    Raises:
        ModelFileError: the manifest is missing, malformed, or of another version.
    """
    fields = JsonObject.read(folder / FILE)
    version = fields.integer("version")
    if version != VERSION:
        raise ModelFileError(f"{fields.where} is of version {version}, but this edgelm reads version {VERSION}")
    tensors, state = fields.object("tensors"), fields.object("state")
    return Manifest(
        fields.object("fingerprint").values,
        {name: _tensor(folder, name, tensors.object(name)) for name in tensors.values},
        _state(folder, state) if state.values else None,
    )


def _fields(manifest: Manifest) -> dict[str, Any]:
    state = manifest.state
    return {
        "version": VERSION,
        "fingerprint": manifest.fingerprint,
        "tensors": {
            t.name: {"format": t.format.name, "shape": t.shape, "file": t.path.name, "sha256": t.sha256, "facts": dict(t.facts)}
            for t in manifest.tensors.values()
        },
        "state": state
        and {
            "step": state.step,
            "arrays": {
                name: {"dtype": a.dtype.str, "shape": a.shape, "file": a.path.name, "sha256": a.sha256} for name, a in state.arrays.items()
            },
        },
    }


def _tensor(folder: Path, name: str, fields: JsonObject) -> FinishedTensor:
    block_format = FORMATS.get(fields.text("format"))
    if block_format is None:
        raise fields.fail("format", f"one of {', '.join(FORMATS)}")
    facts = fields.object("facts").values
    if not all(type(value) in (int, float, str) for value in facts.values()):
        raise fields.fail("facts", "numbers and texts")
    return FinishedTensor(name, block_format, _shape(fields), _path(folder, fields), fields.text("sha256"), facts)


def _state(folder: Path, fields: JsonObject) -> State:
    arrays = fields.object("arrays")
    return State(fields.text("step"), {name: _array(folder, arrays.object(name)) for name in arrays.values})


def _array(folder: Path, fields: JsonObject) -> StoredArray:
    text = fields.text("dtype")
    if DTYPE.fullmatch(text) is None:
        raise fields.fail("dtype", "a type of numbers")
    return StoredArray(np.dtype(text), _shape(fields), _path(folder, fields), fields.text("sha256"))


def _shape(fields: JsonObject) -> tuple[int, ...]:
    sizes = fields.reals("shape")
    if not sizes or not all(size >= 0 and size.is_integer() for size in sizes):
        raise fields.fail("shape", "a list of whole numbers")
    return tuple(int(size) for size in sizes)


def _path(folder: Path, fields: JsonObject) -> Path:
    name = fields.text("file")
    if DATA_FILE.fullmatch(name) is None:  # names lead nowhere else
        raise fields.fail("file", "the name of a data file")
    return folder / name


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
