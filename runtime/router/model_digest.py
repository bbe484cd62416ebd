"""The SHA-256 of a model, whatever it is called and wherever it lies; what was computed once is remembered."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from edgelm.errors import ModelFileError
from edgelm.runtime.router.json_file import read_json, write_json

_LOG = logging.getLogger(__name__)
_VERSION = 1
_MOST_KNOWN = 1000


def model_sha256(model: Path, memory: Path | None = None) -> str:
    """Of a file's bytes; of a folder, the SHA-256 over a line "sha256  path" for each of its files, sorted by path, hidden ones left out.

    (`cd MODEL; find . -type f -not -path '*/.*' -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum` says the same.)

    Args:
        memory: a JSON file of what is known, made and kept up to date; a file counts as known while its place, size, time of change and
            inode are the same. None reads everything.

    Raises:
        ModelFileError: it cannot be read, holds no files, or changes meanwhile.
    """
    known = _read(memory) if memory is not None else {}
    found = dict(known)
    try:
        if not model.is_dir():
            digest = _sha256(model.resolve(), found)
        else:
            names = sorted(
                file.relative_to(model).as_posix().encode()
                for file in model.rglob("*")
                if file.is_file() and not any(part.startswith(".") for part in file.relative_to(model).parts)
            )
            if not names:
                raise ModelFileError(f"{model} holds no files; give the folder of a model")
            lines = [f"{_sha256((model / os.fsdecode(name)).resolve(), found)}  ".encode() + name + b"\n" for name in names]
            digest = hashlib.sha256(b"".join(lines)).hexdigest()
    except OSError as error:
        raise ModelFileError(f"{model} cannot be read ({error}); check the path and its permissions") from None
    if memory is not None and found != known:
        _write(memory, found)
    return digest


def _sha256(file: Path, known: dict[str, str]) -> str:
    key = _key(file)
    if key not in known:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if _key(file) != key:
            raise ModelFileError(f"{file} was changed while it was being read; try again when it is whole")
        known[key] = digest
    return known[key]


def _key(file: Path) -> str:
    stat = file.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino} {file}"


def _read(memory: Path) -> dict[str, str]:
    try:
        content = read_json(memory)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _LOG.warning("%s cannot be read (%s); models are read again", memory, error)
        return {}
    files = content.get("files") if isinstance(content, Mapping) and content.get("version") == _VERSION else None
    if not isinstance(files, Mapping):
        return {}
    return {key: value for key, value in files.items() if isinstance(key, str) and isinstance(value, str) and len(value) == 64}


def _write(memory: Path, files: Mapping[str, str]) -> None:
    latest = dict(list(files.items())[-_MOST_KNOWN:])
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, {"version": _VERSION, "files": latest})
    except OSError as error:
        _LOG.warning("%s could not be written (%s); models will be read again", memory, error)
