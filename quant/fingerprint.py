"""What determines the result of a quantization, as a JSON object that a later run can be compared with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.version import __version__

Fingerprint = Mapping[str, Any]  # what JSON holds, nested mappings included

_HEAD_BYTES = 1 << 20


def make_fingerprint(source: Path, settings: Mapping[str, Any], texts: Mapping[str, Path]) -> Fingerprint:
    """The fingerprint of a run.

    Args:
        source: the model, a file or a folder. Its files count by path, size, time of change, and a hash of the first megabyte.
        settings: of the method; numbers, texts, truth values, null, lists and mappings.
        texts: files that are read whole, as that of calibration; they count by their hash alone.

    Raises:
        ModelFileError: a file is missing or cannot be read.
        InvalidRequestError: a setting is nothing that JSON holds.
    """
    try:
        files = [source] if source.is_file() else sorted(p for p in source.iterdir() if p.is_file() and not p.name.startswith("."))
        identity = {str(path.resolve()): _file_identity(path) for path in files}
        hashes = {name: _sha256(path) for name, path in texts.items()}
    except OSError as error:
        raise ModelFileError(f"{error.filename or source} cannot be read ({error.strerror or error}); check the path") from error
    return as_json({"edgelm": __version__, "source": identity, "settings": settings, "texts": hashes})


def as_json(fingerprint: Mapping[str, Any]) -> Fingerprint:
    """As it comes back from a JSON file, so that the two can be compared.

    Raises:
        InvalidRequestError: it has a value that JSON does not hold, such as NaN.
    """
    try:
        values: Fingerprint = json.loads(json.dumps(fingerprint, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"these settings cannot be stored ({error}); give finite numbers, texts, lists and mappings") from None
    return values


def differences(stored: Fingerprint, wanted: Fingerprint, where: str = "") -> list[str]:
    """What differs, for people: "settings.format: 'q4_0' there, 'q4_1' now"."""
    found = []
    for key in {**stored, **wanted}:
        old, new = stored.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{where}{key}: ")
        elif old != new or (key in stored) != (key in wanted):
            found.append(f"{where}{key}: {_shown(stored, key)} there, {_shown(wanted, key)} now")
    return found


def _shown(values: Fingerprint, key: str) -> str:
    text = repr(values[key]) if key in values else "nothing"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _file_identity(path: Path) -> dict[str, Any]:
    status = path.stat()
    with path.open("rb") as file:
        head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
    return {"bytes": status.st_size, "changed": status.st_mtime_ns, "head": head}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
