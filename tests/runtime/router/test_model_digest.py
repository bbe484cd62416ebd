"""The SHA-256 of a model: of its bytes, remembered while nothing changes, never trusted afterwards."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from edgelm.errors import ModelFileError
from edgelm.runtime.router.model_digest import model_sha256


def test_a_file_has_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"model")
    assert model_sha256(file) == hashlib.sha256(b"model").hexdigest()


def test_a_folder_has_that_of_its_list_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    (folder / "sub").mkdir(parents=True)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_bytes(b"not of it")
    (folder / "b").write_bytes(b"2")
    (folder / "sub" / "a").write_bytes(b"1")
    one, two = (hashlib.sha256(data).hexdigest() for data in (b"1", b"2"))
    digest = model_sha256(folder)
    assert digest == hashlib.sha256(f"{two}  b\n{one}  sub/a\n".encode()).hexdigest()
    (folder / "b").rename(folder / "c")
    assert model_sha256(folder) != digest


def test_what_is_known_is_not_read_again(tmp_path: Path) -> None:
    file, memory = tmp_path / "m.gguf", tmp_path / "home" / "digests.json"
    file.write_bytes(b"model")
    digest = model_sha256(file, memory)
    written = memory.read_text()
    assert model_sha256(file, memory) == digest
    memory.write_text(written.replace(digest, "0" * 64))
    assert model_sha256(file, memory) == "0" * 64  # it was the memory that answered
    (tmp_path / "link").symlink_to(file)
    assert model_sha256(tmp_path / "link", memory) == "0" * 64


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_file_that_changed_is_read_again(change: str, tmp_path: Path) -> None:
    file, memory = tmp_path / "m.gguf", tmp_path / "digests.json"
    file.write_bytes(b"model")
    stat = file.stat()
    model_sha256(file, memory)
    if change == "inode":
        (tmp_path / "new").write_bytes(b"other")
        (tmp_path / "new").replace(file)
    else:
        file.write_bytes(b"other" if change == "time" else b"others")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + (change == "time")))
    assert model_sha256(file, memory) == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 2, "files": {}}', '{"version": 1, "files": 3}', '{"version": 1, "files": {"x": 1}}']
)
def test_a_damaged_memory_is_made_anew(text: str, tmp_path: Path) -> None:
    file, memory = tmp_path / "m.gguf", tmp_path / "digests.json"
    file.write_bytes(b"model")
    memory.write_text(text)
    digest = model_sha256(file, memory)
    assert digest == hashlib.sha256(b"model").hexdigest()
    assert list(json.loads(memory.read_text())["files"].values()) == [digest]


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read"):
        model_sha256(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="holds no files"):
        model_sha256(tmp_path)
