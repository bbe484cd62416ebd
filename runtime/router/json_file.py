"""Files of text, most of it JSON, that are there with all their bytes, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_json(path: Path, value: object) -> None:
    """As write_text.

    Raises:
        OSError: as write_text.
        ValueError: a number is not finite, which JSON cannot say.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    """Write beside the place, sync, and rename.

    Args:
        mode: of the new file, less what the umask takes away; by default only the owner may read it.

    Raises:
        OSError: the disk is full, or the folder may not be written to.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_json(path: Path, n_bytes: int = 16 << 20) -> object:
    """What a file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, holds a number that is not finite, or is larger than n_bytes.
    """
    if path.stat().st_size > n_bytes:
        raise ValueError(f"it has more than {n_bytes} bytes")
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no number of JSON")
