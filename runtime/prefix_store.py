"""Beginnings of conversations on disk: what was computed once need not be computed again after a restart.

Each is a safetensors file of its own, in a folder of its model. Files are written beside their place, synced and then renamed, so that
one either is there with all its bytes or is not; what an interrupted write left is removed at the next start.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edgelm.errors import InvalidRequestError
from edgelm.runtime.common_prefix import Tokens, common_prefix

_LOG = logging.getLogger(__name__)
_VERSION = 1
_ENDING, _UNFINISHED = ".safetensors", ".unfinished"
_MOST_PENDING = 2  # writes; further beginnings are forgotten, for each holds its memory until it is written


class StoreFolder:
    """A folder for the beginnings of all models of one server.

    Args:
        root: made if it is not there, for its owner only: the beginnings hold what people wrote.
        n_bytes: of all files; those used longest ago are deleted.

    Raises:
        InvalidRequestError: the folder cannot be used, or another server uses it.
    """

    def __init__(self, root: Path, n_bytes: int) -> None:
        self.root = root
        self.n_bytes = n_bytes
        import fcntl  # not on every system that imports this package

        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(root / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise InvalidRequestError(f"{root} cannot keep beginnings ({error}); give another folder") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets it go with the process, however that ends
        except OSError:
            os.close(self._lock)
            raise InvalidRequestError(f"{root} is used by another server; give another folder") from None
        for left in root.rglob(f"*{_UNFINISHED}"):
            left.unlink()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="edgelm-prefix-store")
        self._deleting = threading.Lock()
        self.delete_oldest()

    def of(self, identity: str) -> PrefixStore:
        """The store of one model.

        Args:
            identity: another one for whatever makes other keys and values: the model, the engine, its options.
        """
        return PrefixStore(self, self.root / hashlib.sha256(f"{_VERSION} {identity}".encode()).hexdigest()[:32], self._writer)

    def delete_oldest(self) -> None:
        """Keep to n_bytes."""
        with self._deleting:
            files = {file: file.stat() for file in self.root.rglob(f"*{_ENDING}")}
            total = sum(stat.st_size for stat in files.values())
            for file in sorted(files, key=lambda file: files[file].st_mtime_ns):
                if total <= self.n_bytes:
                    return
                file.unlink()
                total -= files[file].st_size

    def close(self) -> None:
        """Wait for what is being written; the folder is free for another server."""
        self._writer.shutdown()
        os.close(self._lock)


class PrefixStore:
    """The beginnings of one model. Used by one thread; files of it may vanish at any time."""

    def __init__(self, folder: StoreFolder, path: Path, writer: ThreadPoolExecutor) -> None:
        self._folder = folder
        self._path = path
        self._writer = writer
        self._pending = threading.Semaphore(_MOST_PENDING)
        self._lock = threading.Lock()
        path.mkdir(mode=0o700, exist_ok=True)
        self._known: dict[Path, Tokens] = {}
        for file in path.glob(f"*{_ENDING}"):
            with suppress(OSError, SafetensorError, KeyError), safe_open(file, "numpy") as content:
                self._known[file] = content.get_tensor("tokens")

    def __len__(self) -> int:
        return len(self._known)

    def find(self, tokens: Tokens) -> tuple[Path | None, int]:
        """The file that begins like these tokens for longest, and for how many tokens; (None, 0) where none does."""
        with self._lock:
            lengths = {file: common_prefix(known, tokens) for file, known in self._known.items()}
        best = max(lengths, key=lengths.__getitem__, default=None)
        return (best, lengths[best]) if best is not None and lengths[best] else (None, 0)

    def read(self, file: Path) -> tuple[Tokens, NDArray[np.uint8]] | None:
        """Tokens int32 [n] and their state uint8 [n_bytes]; None if the file has vanished or is damaged, and then it is forgotten."""
        try:
            with safe_open(file, "numpy") as content:
                tokens, state = content.get_tensor("tokens"), content.get_tensor("state")
                checksum = content.metadata()["crc32"]
            if checksum == str(_checksum(tokens, state)):
                os.utime(file)
                return tokens, state
        except (OSError, SafetensorError, KeyError, TypeError):
            pass
        with self._lock:
            self._known.pop(file, None)
        file.unlink(missing_ok=True)
        return None

    def write_soon(self, tokens: Tokens, state: Sequence[NDArray[np.uint8]]) -> None:
        """Write in another thread; forget it, if the disk is too slow for all that comes."""
        if self._pending.acquire(blocking=False):
            self._writer.submit(self._write_pending, tokens, state)

    def write(self, tokens: Tokens, state: Sequence[NDArray[np.uint8]]) -> None:
        """Write a beginning, unless it is part of one that is there; those that are part of it are deleted. A disk that is full or
        broken loses it."""
        n_bytes = sum(piece.nbytes for piece in state)
        with self._lock:
            others = {file: (common_prefix(known, tokens), len(known)) for file, known in self._known.items()}
        if n_bytes > self._folder.n_bytes or any(n == len(tokens) and file.exists() for file, (n, _) in others.items()):
            return
        file = self._path / f"{hashlib.sha256(tokens.tobytes()).hexdigest()[:32]}{_ENDING}"
        unfinished = file.with_suffix(_UNFINISHED)
        joined = np.concatenate(state)
        try:
            checksum = _checksum(tokens, joined)
            save_file({"tokens": tokens, "state": joined}, unfinished, {"crc32": str(checksum)})
            unfinished.chmod(0o600)
            _sync(unfinished)
            unfinished.replace(file)
            _sync(self._path)
        except (OSError, SafetensorError) as error:
            _LOG.warning("%s could not be written (%s); make room, or give another folder", file, error)
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            return
        with self._lock:
            self._known[file] = tokens
            for other, (n, length) in others.items():
                if n == length:
                    self._known.pop(other, None)
                    other.unlink(missing_ok=True)
        self._folder.delete_oldest()
        with self._lock:
            for gone in [file for file in self._known if not file.exists()]:
                del self._known[gone]

    def _write_pending(self, tokens: Tokens, state: Sequence[NDArray[np.uint8]]) -> None:
        try:
            self.write(tokens, state)
        finally:
            self._pending.release()


def _checksum(tokens: Tokens, state: NDArray[np.uint8]) -> int:
    return zlib.crc32(state.data, zlib.crc32(tokens.data))


def _sync(path: Path) -> None:
    """Have the disk keep what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
