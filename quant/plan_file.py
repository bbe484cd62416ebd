"""Plans of mixed precision as JSON files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.json_file import JsonObject, write_json
from edgelm.quant.mixed_precision import Budget, BudgetKind, Plan, PlannedTensor, check_bytes

VERSION = 1


def write_plan(path: Path, plan: Plan) -> None:
    """Write the plan so that there is never half of it.

    Raises:
        ModelFileError: it cannot be written there.
    """
    fields = {
        "version": VERSION,
        "budget": {"kind": plan.budget.kind, "amount": plan.budget.amount},
        "fixed_bytes": plan.fixed_bytes,
        "alignment": plan.alignment,
        "tensors": {t.name: {"shape": t.shape, "format": t.format, "n_bytes": t.n_bytes, "error": t.error} for t in plan.tensors},
    }
    write_json(path, fields, "the plan")


def read_plan(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """Read a plan for a model.

    Args:
        shapes: of the model's tensors, by name. The plan may leave some out.

    Raises:
        ModelFileError: the file is missing or no sound plan; or it has a tensor that the model has not, or has in another shape.
    """
    fields = JsonObject.read(path)
    version = fields.integer("version")
    if version != VERSION:
        raise ModelFileError(f"{path}: a plan of version {version}, but this edgelm reads version {VERSION}; make the plan again")
    tensors = fields.object("tensors")
    if not tensors.values:
        raise ModelFileError(f"{path}: the plan has no tensors; make it again")
    budget = fields.object("budget")
    kinds: dict[str, BudgetKind] = {kind: kind for kind in get_args(BudgetKind)}
    kind = kinds.get(budget.text("kind"))
    if kind is None:
        raise budget.fail("kind", f"one of {', '.join(kinds)}")
    return Plan(
        tuple(_tensor(tensors.object(name), name, shapes) for name in tensors.values),
        Budget(kind, budget.real("amount")),
        _whole(fields, "fixed_bytes"),
        _whole(fields, "alignment") or 1,
    )


def _tensor(fields: JsonObject, name: str, shapes: Mapping[str, tuple[int, ...]]) -> PlannedTensor:
    shape = tuple(int(size) for size in fields.reals("shape"))
    if name not in shapes:
        raise ModelFileError(f"{fields.where}: the model has no tensor {name}; the plan was made for another model, make it again")
    if shape != tuple(shapes[name]):
        raise ModelFileError(
            f"{fields.where}: the plan has {name} in the shape {shape}, but in the model it is {tuple(shapes[name])}; "
            "the plan was made for another model, make it again"
        )
    planned = PlannedTensor(name, shape, fields.text("format"), _whole(fields, "n_bytes"), fields.real("error"))
    try:
        check_bytes(name, shape, planned.format, planned.n_bytes)
    except (InvalidRequestError, ModelFileError) as error:
        raise ModelFileError(f"{fields.where}: {error}") from None
    if planned.error < 0:
        raise fields.fail("error", "zero or more")
    return planned


def _whole(fields: JsonObject, key: str) -> int:
    """A whole number that, unlike JsonObject.integer, may be the size of a large file."""
    value = fields.real(key)
    if value < 0 or not value.is_integer():
        raise fields.fail(key, "a whole number of bytes")
    return int(value)
