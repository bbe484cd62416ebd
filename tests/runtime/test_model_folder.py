"""The models in a folder, their names, sizes, and what tells one from another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgelm.errors import InvalidRequestError
from edgelm.runtime.model_folder import bytes_on_disk, identity_of, models_in, short_name


def test_files_and_folders_of_models_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text("{}")
    assert models_in(tmp_path) == {"a": tmp_path / "a.gguf", "b": tmp_path / "b"}
    (tmp_path / "b.gguf").write_bytes(b"x")
    with pytest.raises(InvalidRequestError, match="rename one"):
        models_in(tmp_path)
    with pytest.raises(InvalidRequestError, match="holds no models"):
        models_in(tmp_path / "empty")


def test_names_and_sizes(tmp_path: Path) -> None:
    assert [short_name(name) for name in ("a/b.gguf", "hf:owner/repo/c.gguf", "folder/", "plain")] == ["b", "c", "folder", "plain"]
    (tmp_path / "x").write_bytes(b"123")
    (tmp_path / "y").write_bytes(b"45")
    assert (bytes_on_disk(tmp_path / "x"), bytes_on_disk(tmp_path)) == (3, 5)


@pytest.mark.parametrize("size", [0, 10, 5_000_000])
def test_a_file_that_changed_is_another_model(tmp_path: Path, size: int) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(size))
    os.utime(file, ns=(1, 1))
    first = identity_of(file)
    assert identity_of(file) == first
    os.utime(file, ns=(1, 2))
    touched = identity_of(file)
    file.write_bytes(b"!" + bytes(size))
    os.utime(file, ns=(1, 1))
    assert len({first, touched, identity_of(file)}) == 3


def test_another_of_the_same_size_and_time_is_told_by_its_bytes(tmp_path: Path) -> None:
    identities = set()
    for value in (1, 2):
        (tmp_path / "model.gguf").write_bytes(bytes([value]) * 5_000_000)
        os.utime(tmp_path / "model.gguf", ns=(1, 1))
        identities.add(identity_of(tmp_path / "model.gguf"))
    assert len(identities) == 2


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = identity_of(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    assert identity_of(tmp_path) != before
