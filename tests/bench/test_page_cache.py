import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.bench.page_cache import cached_fraction, evict, files_of
from edgelm.errors import MeasurementError

SIZE = 400 * mmap.PAGESIZE
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what their page cache holds")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """On a disk: what is in memory alone cannot be evicted."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(SIZE))
    kind = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True).stdout.strip()
    if kind in ("tmpfs", "ramfs"):
        pytest.skip(f"the temporary folder is a {kind}, whose files have no place but memory")
    return path


def test_files_of_folders_come_by_name(tmp_path: Path) -> None:
    for name in ("b/two", "b/one", "a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert files_of([tmp_path / "b", tmp_path / "a"]) == [tmp_path / "b/one", tmp_path / "b/two", tmp_path / "a"]


@needs_linux
def test_a_file_leaves_the_cache_and_comes_back(file: Path) -> None:
    file.read_bytes()
    assert cached_fraction([file]) == 1.0
    evict([file])
    assert cached_fraction([file]) == 0.0
    assert cached_fraction([file]) == 0.0  # looking brings nothing in
    file.read_bytes()
    assert cached_fraction([file]) == 1.0


@needs_linux
def test_files_count_by_their_pages(file: Path) -> None:
    small = file.with_name("small")
    small.write_bytes(bytes(SIZE // 4))
    evict([file.parent])
    small.read_bytes()
    assert cached_fraction([file, small]) == pytest.approx(0.2)
    assert cached_fraction([file.parent]) == pytest.approx(0.2)


def test_no_bytes_have_no_fraction(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    evict([tmp_path])
    assert cached_fraction([tmp_path]) is None


@needs_linux
def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    for act in (evict, cached_fraction):
        with pytest.raises(MeasurementError, match="no-such-file"):
            act([tmp_path / "no-such-file"])
