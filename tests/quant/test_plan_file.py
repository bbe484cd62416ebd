from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgelm.errors import ModelFileError
from edgelm.quant.mixed_precision import Budget, Plan, PlannedTensor
from edgelm.quant.plan_file import read_plan, write_plan

PLAN = Plan(
    (
        PlannedTensor("token_embd.weight", (300_000, 16384), "Q8_0", 5_222_400_000, 0.001),  # larger than 2^31 bytes
        PlannedTensor("blk.0.ffn_down.weight", (64, 96), "Q4_1", 3840, 0.25),
    ),
    Budget("file size", 9e9),
    fixed_bytes=123,
)
SHAPES = {"token_embd.weight": (300_000, 16384), "blk.0.ffn_down.weight": (64, 96), "output_norm.weight": (64,)}


def test_written_plans_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(path, PLAN)
    assert read_plan(path, SHAPES) == PLAN
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields["tensors"]["blk.0.ffn_down.weight"].update({key: value})


def change_top(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.update({key: value})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("format", "Q9_9"), r"blk\.0\.ffn_down\.weight is to be 'Q9_9', which is no format; choose one of F32"),
        (change("format", "Q5_0"), r"takes 4224 bytes as Q5_0, but was given 3840"),
        (change("format", "Q4_K"), r"rows of 96 values cannot be Q4_K"),
        (change("format", None), r"the key 'format' is missing"),
        (change("shape", [64, 64]), r"in the shape \(64, 64\), but in the model it is \(64, 96\)"),
        (change("n_bytes", 0.5), r"a whole number of bytes"),
        (change("error", -1), r"zero or more"),
        (change("error", "small"), r"a finite number"),
        (change_top("version", 2), r"a plan of version 2, but this edgelm reads version 1"),
        (change_top("tensors", {}), r"has no tensors"),
        (change_top("tensors", {"blk.9.x": {"shape": [1]}}), r"the model has no tensor blk\.9\.x"),
        (change_top("tensors", [1]), r"an object"),
        (change_top("budget", {"kind": "money", "amount": 1}), r"one of bits per weight, file size, error"),
    ],
)
def test_plans_that_do_not_fit_are_refused_by_name(tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    path = tmp_path / "plan.json"
    write_plan(path, PLAN)
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(ModelFileError, match=rf"plan\.json.*{message}"):
        read_plan(path, SHAPES)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="the plan cannot be written"):
        write_plan(tmp_path / "absent" / "plan.json", PLAN)
