from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.blocks import F16, Q4_0, Q8_0
from edgelm.quant.mixed_precision import Choice, TensorOptions
from edgelm.quant.sensitivity_file import read_options, write_options

FINGERPRINT = {"edgelm": "1", "source": {"/m.gguf": {"bytes": 10}}, "settings": {"tokens": 512, "candidates": ("Q4_0", "Q8_0")}}


def options() -> tuple[TensorOptions, ...]:
    shape = (3, 64)
    return (
        TensorOptions("blk.0.ffn_up.weight", shape, (Choice("Q4_0", Q4_0.nbytes(shape), 1 / 3), Choice("Q8_0", Q8_0.nbytes(shape), 0.0))),
        TensorOptions("blk.0.ffn_down.weight", (4, 10), (Choice("F16", F16.nbytes((4, 10)), 0.0),)),
    )


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    path = tmp_path / "damages.json"
    write_options(path, options(), FINGERPRINT)
    return path


def changed(path: Path, keys: list[str], value: Any) -> Path:
    fields = json.loads(path.read_text())
    at = fields
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    path.write_text(json.dumps(fields))
    return path


def test_come_back_to_the_bit(path: Path) -> None:
    assert read_options(path, FINGERPRINT) == options()
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_of_another_model_or_other_settings_are_refused(path: Path) -> None:
    other = {**FINGERPRINT, "settings": {"tokens": 1024, "candidates": ["Q4_0", "Q8_0"]}}
    with pytest.raises(InvalidRequestError, match="tokens: 512 there, 1024 now"):
        read_options(path, other)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["version"], 2, "version 2"),
        (["tensors"], {}, "no tensors"),
        (["tensors", "blk.0.ffn_up.weight", "damages", "Q4_0"], -1, "not negative"),
        (["tensors", "blk.0.ffn_up.weight", "damages", "Q4_0"], "x", "a finite number"),
        (["tensors", "blk.0.ffn_up.weight", "damages"], {"Q4_9": 1}, "no format"),
        (["tensors", "blk.0.ffn_up.weight", "damages"], {}, "no format to choose from"),
        (["tensors", "blk.0.ffn_up.weight", "shape"], [3, 63], "blocks of 32"),
        (["tensors", "blk.0.ffn_up.weight", "shape"], [3, -64], "two whole numbers"),
        (["tensors", "blk.0.ffn_up.weight", "shape"], [3, 6.5], "two whole numbers"),
    ],
)
def test_damaged_files_are_refused(path: Path, keys: list[str], value: Any, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_options(changed(path, keys, value), FINGERPRINT)


def test_nothing_is_left_behind_where_they_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="the measured damages cannot be written"):
        write_options(tmp_path / "missing" / "d.json", options(), FINGERPRINT)
    assert not list(tmp_path.iterdir())
