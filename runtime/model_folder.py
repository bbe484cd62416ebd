"""The models in a folder, by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgelm.errors import InvalidRequestError

_SAMPLES, _SAMPLE_BYTES = 1024, 4096  # of a file, for its identity: reading it all takes seconds per gigabyte


def models_in(folder: Path) -> dict[str, Path]:
    """GGUF files, exported folders and Hugging Face folders right in the folder, by their names.

    Raises:
        InvalidRequestError: there are none, or two have one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if (path.is_file() and path.suffix == ".gguf") or any((path / name).is_file() for name in ("config.json", "edgelm.json")):
            name = short_name(path.name)
            if name in found:
                raise InvalidRequestError(f"{folder} holds both {found[name].name} and {path.name}; rename one of them")
            found[name] = path
    if not found:
        raise InvalidRequestError(f"{folder} holds no models; put GGUF files or model folders there")
    return found


def short_name(model: str) -> str:
    """What clients call a model: the last part of its path, without the ending."""
    return model.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")


def identity_of(path: Path) -> str:
    """Another one for another model, and for one whose file was changed: from sizes, times, and bytes of all parts of its files."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file()):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        with file.open("rb") as content:
            for place in range(0, stat.st_size, max(stat.st_size // _SAMPLES, _SAMPLE_BYTES)):
                content.seek(place)
                digest.update(content.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def bytes_on_disk(path: Path) -> int:
    """Of a file, or of all files right in a folder."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir() if file.is_file())
