"""What can be a form of an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgelm.errors import InvalidRequestError
from edgelm.runtime.form import JSON_OBJECT, Form


def test_a_schema_is_kept_as_its_text() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert json.loads(Form.json_schema(schema).text) == schema
    assert json.loads(JSON_OBJECT.text) == {"type": "object"}


def deep() -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize("schema", [{"a": {1, 2}}, {"a": float("nan")}, deep()], ids=["a set", "no number", "too deep"])
def test_what_cannot_be_json_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be written as JSON"):
        Form.json_schema(schema)
