"""A digest of source files, by which a cache knows that what it holds was made by other code."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path


def source_digest(entries: Sequence[str], *further: str) -> str:
    """SHA-256, in hexadecimal digits, of source files and of further texts.

    Args:
        entries: files, and folders for the Python files in them, relative to the package.
        further: whatever else decides the result, such as versions.
    """
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for entry in entries:
        path = root / entry
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    digest.update(" ".join(further).encode())
    return digest.hexdigest()
