"""The state of an unfinished quantization, in a folder beside the file that is to come: `OUT.gguf.unfinished`.

A single file, the manifest, says what counts. Data go to new files first; then a new manifest takes the place of the old one, at
once. So a run that is killed at any moment leaves the folder as it was after the last whole step, and perhaps files that no manifest
lists, which the next run removes.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ClosedError, InvalidRequestError, ModelFileError
from edgelm.quant import work_manifest
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.fingerprint import Fingerprint, as_json, differences
from edgelm.quant.folder_lock import FolderLock
from edgelm.quant.hashed_file import HashedFile, check_hash, storage_error
from edgelm.quant.mapped_file import MappedFile
from edgelm.quant.state_writer import StateWriter
from edgelm.quant.work_manifest import DATA_FILE, FinishedTensor, Manifest, State, read_manifest, write_manifest

_LOCK = "lock"
Chunks = NDArray[Any] | Iterable[NDArray[Any]]


def work_path(target: Path) -> Path:
    """Where the unfinished state of a file is kept."""
    return target.with_name(f"{target.name}.unfinished")


def open_or_create(target: Path, fingerprint: Fingerprint, restart: bool = False) -> WorkFolder:
    """The work folder of a file that is to be written, locked for this process.

    Args:
        target: the file; the folder is made beside it.
        fingerprint: of all that determines the result (see fingerprint.make_fingerprint).
        restart: discard what an earlier run left, whatever its settings were and even if it is damaged.

    Raises:
        InvalidRequestError: there is work of other settings or of another version, or another process is at work.
        ModelFileError: what is there is damaged or was not made by edgelm, or the folder cannot be written.
    """
    folder, wanted = work_path(target), as_json(fingerprint)
    try:
        folder.mkdir(exist_ok=True)
        _check_own(folder)
        lock = FolderLock(folder / _LOCK)
    except FileExistsError:
        raise ModelFileError(f"{folder} is no folder, but its name is needed for one; move it away") from None
    except OSError as error:
        raise storage_error(error, folder) from error
    try:
        return WorkFolder(folder, _resumed(folder, wanted, restart), lock)
    except BaseException:
        lock.release()
        raise


class WorkFolder:
    """An unfinished quantization; a context manager that gives the folder back, with all that is in it, for a later run.

    Tensors may be saved from several threads.
    """

    def __init__(self, path: Path, manifest: Manifest, lock: FolderLock) -> None:
        self.path = path
        self._manifest, self._lock = manifest, lock
        self._is_open, self._mutex = True, threading.Lock()
        used = [int(file.path.stem) for file in manifest.files]
        self._next = max(used, default=-1) + 1

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def finished(self) -> Mapping[str, FinishedTensor]:
        """Tensors that need not be done again, by name."""
        return MappingProxyType(dict(self._manifest.tensors))

    def save_tensor(
        self, name: str, block_format: BlockFormat, shape: Sequence[int], data: Chunks, facts: Mapping[str, float | str] | None = None
    ) -> FinishedTensor:
        """Store a tensor's blocks, for good once this returns; one of the same name is replaced.

        Args:
            shape: slowest dimension first.
            data: uint8 [n_bytes], or chunks of it in order.
            facts: error figures and the like.

        Raises:
            InvalidRequestError: the data have another size than the format and shape, or a fact is not finite.
            ModelFileError: the format cannot hold the shape, or no room is left, or the disk fails; what was stored before stays.
        """
        n_bytes, figures = block_format.nbytes(shape), _checked_facts(name, facts or {})
        file = HashedFile(self._new_path())
        try:
            for chunk in [data] if isinstance(data, np.ndarray) else data:
                file.write(chunk)
            if file.n_bytes != n_bytes:
                raise InvalidRequestError(
                    f"{name} with shape {tuple(shape)} takes {n_bytes} bytes as {block_format.name}, but was given {file.n_bytes}"
                )
            tensor = FinishedTensor(name, block_format, tuple(shape), file.path, file.finish(), figures)
        except BaseException:
            file.discard()
            raise
        # From here on the file stays, even if we are interrupted: the manifest on the disk may list it already.
        with self._mutex:
            self._commit(replace(self._manifest, tensors={**self._manifest.tensors, name: tensor}))
        return tensor

    def load_tensor(self, name: str) -> NDArray[np.uint8]:
        """The blocks of a finished tensor, uint8 [n_bytes], read-only and mapped: pages are read as they are used.

        Raises:
            InvalidRequestError: there is no such tensor.
            ModelFileError: the file cannot be read.
        """
        tensor = self._manifest.tensors.get(name)
        if tensor is None:
            raise InvalidRequestError(f"{self.path} has no finished tensor {name}")
        return MappedFile(tensor.path).view(0, tensor.n_bytes) if tensor.n_bytes else np.empty(0, np.uint8)

    def last_state(self) -> State | None:
        """The checkpoint of the last whole step, if there was one."""
        return self._manifest.state

    @contextlib.contextmanager
    def new_state(self, step: str) -> Iterator[StateWriter]:
        """A checkpoint to be written piece by piece, while the last one may still be read.

        It takes the place of the last one when the block is left, all at once; if the block raises, nothing changes.

        Raises:
            ModelFileError: no room left, or the disk fails; what was stored before stays.
        """
        writer = StateWriter(self._new_path)
        try:
            yield writer
            state = State(step, writer.finish())
        except BaseException:
            writer.discard()
            raise
        with self._mutex:
            self._commit(replace(self._manifest, state=state))

    def save_state(self, step: str, arrays: Mapping[str, Chunks]) -> None:
        """As new_state, with all arrays given: whole, or as chunks of rows."""
        with self.new_state(step) as state:
            for name, chunks in arrays.items():
                for chunk in [chunks] if isinstance(chunks, np.ndarray) else chunks:
                    state.append(name, chunk)

    def remove(self) -> None:
        """Remove the folder and all in it, when the work is done; closes.

        Raises:
            ModelFileError: something cannot be removed.
        """
        self._check_open()
        try:
            # A folder with an empty manifest is as good as none, should this be cut off.
            write_manifest(self.path, Manifest(self._manifest.fingerprint, {}))
            for path in _data_files(self.path):
                path.unlink()
            (self.path / work_manifest.FILE).unlink()
            (self.path / _LOCK).unlink()
            self.path.rmdir()
        except OSError as error:
            raise storage_error(error, self.path) from error
        finally:
            self.close()

    def close(self) -> None:
        """Give up the lock; twice is allowed. Everything saved stays for a later run."""
        self._is_open = False
        self._lock.release()

    def _new_path(self) -> Path:
        """A file that does not exist yet and that no manifest lists."""
        self._check_open()
        with self._mutex:
            self._next += 1
            return self.path / f"{self._next - 1:06}.bin"

    def _commit(self, manifest: Manifest) -> None:
        self._check_open()
        try:
            write_manifest(self.path, manifest)
        except OSError as error:
            raise storage_error(error, self.path) from error
        outdated = {file.path for file in self._manifest.files} - {file.path for file in manifest.files}
        self._manifest = manifest
        for path in outdated:
            path.unlink(missing_ok=True)

    def _check_open(self) -> None:
        if not self._is_open:
            raise ClosedError(f"{self.path} was closed; open it again")


def _check_own(folder: Path) -> None:
    """A folder with anything else in it was not made here, and nothing in it is touched."""
    own = {_LOCK, work_manifest.FILE, work_manifest.PARTIAL}
    for path in folder.iterdir():
        if path.is_symlink() or path.is_dir() or not (path.name in own or DATA_FILE.fullmatch(path.name)):
            raise ModelFileError(
                f"{folder} holds {path.name}, which edgelm did not put there; move the folder away, or remove it if nothing in it is "
                "needed: --restart discards only what edgelm made"
            )


def _checked_facts(name: str, facts: Mapping[str, float | str]) -> dict[str, float | str]:
    checked = {key: value if isinstance(value, str) else float(value) for key, value in facts.items()}
    for key, value in checked.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequestError(f"{name}: the figure {key!r} is {value}; something went wrong before, so the tensor is not stored")
    return checked


def _data_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if DATA_FILE.fullmatch(path.name)]


def _resumed(folder: Path, wanted: Fingerprint, restart: bool) -> Manifest:
    """The manifest that holds from now on, written, with all its files checked and all others removed."""
    manifest = None if restart else _stored(folder)
    try:
        if manifest is None or manifest.is_empty:
            manifest = Manifest(wanted, {})
            write_manifest(folder, manifest)
        _check_same(folder, manifest.fingerprint, wanted)
        _check_files(folder, manifest)
        listed = {file.path for file in manifest.files}
        for path in _data_files(folder):
            if path not in listed:
                path.unlink()
    except OSError as error:
        raise storage_error(error, folder) from error
    return manifest


def _stored(folder: Path) -> Manifest | None:
    """The manifest in the folder; None where nothing was stored yet."""
    if not (folder / work_manifest.FILE).exists():
        if _data_files(folder):
            raise _damaged(folder, ModelFileError(f"{work_manifest.FILE} is missing"))
        return None
    try:
        return read_manifest(folder)
    except ModelFileError as error:
        raise _damaged(folder, error) from None


def _check_same(folder: Path, stored: Fingerprint, wanted: Fingerprint) -> None:
    found = differences(stored, wanted)
    if found:
        raise InvalidRequestError(
            f"{folder} holds unfinished work of other settings ({'; '.join(found)}); give the settings of then to go on with it, "
            "or --restart to discard it"
        )


def _check_files(folder: Path, manifest: Manifest) -> None:
    for file in manifest.files:
        try:
            check_hash(file.path, file.n_bytes, file.sha256)
        except ModelFileError as error:
            raise _damaged(folder, error) from None


def _damaged(folder: Path, error: ModelFileError) -> ModelFileError:
    what, _, _ = str(error).partition("; ")  # without the advice that suits other files
    return ModelFileError(f"the unfinished work in {folder} cannot be used: {what}; give --restart to discard it and begin again")
