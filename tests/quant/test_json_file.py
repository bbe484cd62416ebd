from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgelm.errors import ModelFileError
from edgelm.quant.json_file import MAX_BYTES, JsonObject

VALUES = JsonObject({"int": 3, "real": 0.5, "text": "a", "yes": True, "null": None, "object": {"a": 1}, "list": [1, 2.5]}, "model.json")


def test_values_of_the_type_asked_for() -> None:
    assert VALUES.integer("int") == 3
    assert VALUES.real("int") == 3.0
    assert VALUES.real("real") == 0.5
    assert VALUES.text("text") == "a"
    assert VALUES.truth("yes") is True
    assert VALUES.reals("list") == [1.0, 2.5]
    assert VALUES.object("object").integer("a") == 1
    assert VALUES.object("absent").values == {}


def test_null_counts_as_missing() -> None:
    assert not VALUES.has("null")
    assert VALUES.integer("null", None) is None
    assert VALUES.text("absent", "b") == "b"
    with pytest.raises(ModelFileError, match=r"model\.json: the key 'null' is missing"):
        VALUES.integer("null")


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("integer", "real"),
        ("integer", "yes"),
        ("real", "text"),
        ("real", "yes"),
        ("text", "int"),
        ("truth", "int"),
        ("object", "list"),
        ("reals", "int"),
    ],
)
def test_another_type(method: str, key: str) -> None:
    with pytest.raises(ModelFileError, match=rf"model\.json: the key '{key}' is .*, not .*; fetch the file again"):
        getattr(VALUES, method)(key)


@pytest.mark.parametrize("value", [-1, 2**31, 10**400], ids=["negative", "large", "huge"])
def test_integers_are_bounded(value: int) -> None:
    with pytest.raises(ModelFileError, match="a whole number from 0 to 2147483647"):
        JsonObject({"n": value}, "x").integer("n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400], ids=["nan", "inf", "huge"])
def test_reals_are_finite(value: float) -> None:
    with pytest.raises(ModelFileError, match="not a finite number"):
        JsonObject({"n": value}, "x").real("n")
    with pytest.raises(ModelFileError, match="not a list of numbers"):
        JsonObject({"n": [value]}, "x").reals("n")


def test_messages_name_the_nested_place_and_stay_short() -> None:
    with pytest.raises(ModelFileError, match=r"model\.json \(object\): the key 'a' is 1, not a text"):
        VALUES.object("object").text("a")
    with pytest.raises(ModelFileError) as caught:
        JsonObject({"n": "x" * 10_000}, "x").integer("n")
    assert len(str(caught.value)) < 300


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        JsonObject.read(tmp_path / "a.json")
    assert JsonObject.read_if_there(tmp_path / "a.json").values == {}


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        os.truncate(file.fileno(), MAX_BYTES + 1)
    with pytest.raises(ModelFileError, match="larger than 256 MiB"):
        JsonObject.read(tmp_path / "a.json")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelFileError, match="not a regular file"):
        JsonObject.read(tmp_path / "config.json")


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(ModelFileError, match="cannot be read"):
        JsonObject.read(tmp_path / "a.json")
