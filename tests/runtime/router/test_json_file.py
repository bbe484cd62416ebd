"""Files are written whole or not at all, and read by whom they should be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from edgelm.runtime.router.json_file import write_json, write_text


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "a" * 100_000 + "\ud800")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, [float("nan")])
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("arguments", "mode"), [({}, 0o600), ({"mode": 0o666}, 0o640)])
def test_a_file_is_the_owners_unless_it_is_to_be_shared(arguments: dict[str, int], mode: int, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "text", **arguments)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
