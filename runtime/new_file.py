"""The place of a file that is yet to be made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgelm.errors import InvalidRequestError


def check_new_file(target: Path, sources: Sequence[Path], overwrite: bool) -> None:
    """Check before the work what would make it vain.

    Args:
        sources: what it is made from, which is never replaced.
        overwrite: another file may be.

    Raises:
        InvalidRequestError: the file cannot be made there, or may not.
    """
    if not target.resolve().parent.is_dir():
        raise InvalidRequestError(f"{target.parent} is no folder; make it, or give another place")
    if target.is_dir():
        raise InvalidRequestError(f"{target} is a folder; give the name of a file")
    if target.exists() and any(source.exists() and target.samefile(source) for source in sources):
        raise InvalidRequestError(f"{target} is what the work is done from; give another name")
    if target.exists() and not overwrite:
        raise InvalidRequestError(f"{target} is there already; give another name, or --overwrite")
