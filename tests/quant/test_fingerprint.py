from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.fingerprint import differences, make_fingerprint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("It is a truth universally acknowledged")
    return path


def test_same_files_and_settings_are_the_same(model: Path, text: Path) -> None:
    first = make_fingerprint(model, {"bits": 4.5, "patterns": ("a", "b")}, {"calibration": text})
    second = make_fingerprint(model, {"bits": 4.5, "patterns": ["a", "b"]}, {"calibration": text})
    assert differences(first, second) == []


def test_each_part_makes_a_difference(model: Path, text: Path) -> None:
    first = make_fingerprint(model, {"bits": 4.5}, {"calibration": text})
    assert differences(first, make_fingerprint(model, {"bits": 4.6}, {"calibration": text})) == ["settings: bits: 4.5 there, 4.6 now"]
    assert differences(first, make_fingerprint(model, {}, {"calibration": text})) == ["settings: bits: 4.5 there, nothing now"]
    text.write_text("It was the best of times")
    assert [line.split(":")[0] for line in differences(first, make_fingerprint(model, {"bits": 4.5}, {"calibration": text}))] == ["texts"]


def test_a_text_counts_by_what_it_says_and_not_by_where_it_is(model: Path, text: Path, tmp_path: Path) -> None:
    moved = text.rename(tmp_path / "moved.txt")
    moved.touch()
    first = make_fingerprint(model, {}, {"calibration": moved})
    text.write_text(moved.read_text())
    assert differences(first, make_fingerprint(model, {}, {"calibration": text})) == []


@pytest.mark.parametrize("change", ["head", "size", "time", "place"])
def test_a_source_that_was_changed(model: Path, tmp_path: Path, change: str) -> None:
    first = make_fingerprint(model, {}, {})
    times = (model.stat().st_atime_ns, model.stat().st_mtime_ns)
    if change == "place":
        model = model.rename(tmp_path / "other.gguf")
    else:
        model.write_bytes(
            b"GGUF" + bytes(101 if change == "size" else 99) + (b"x" if change == "head" else b"\0" if change == "time" else b"")
        )
        os.utime(model, ns=times if change != "time" else (1, 1))
    assert differences(first, make_fingerprint(model, {}, {}))


def test_a_folder_counts_by_its_files(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors", "config.json"):
        (tmp_path / name).write_text(name)
    (tmp_path / "inside").mkdir()
    first = make_fingerprint(tmp_path, {}, {})
    (tmp_path / ".hidden").write_text("")
    assert differences(first, make_fingerprint(tmp_path, {}, {})) == []
    (tmp_path / "b.safetensors").write_text("other")
    (found,) = [line for line in differences(first, make_fingerprint(tmp_path, {}, {})) if "bytes" in line]
    assert "b.safetensors: bytes: 13 there, 5 now" in found


def test_missing_files_and_strange_settings_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"absent\.gguf cannot be read"):
        make_fingerprint(tmp_path / "absent.gguf", {}, {})
    with pytest.raises(ModelFileError, match=r"absent\.txt cannot be read"):
        make_fingerprint(model, {}, {"calibration": tmp_path / "absent.txt"})
    for value in (float("nan"), object()):
        with pytest.raises(InvalidRequestError, match="cannot be stored"):
            make_fingerprint(model, {"x": value}, {})
