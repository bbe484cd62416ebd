"""All texts of a request, wherever they are, to be looked at or replaced.

What is not known to hold no text, or to hold it in a known place, is an error: a field that was overlooked would leave the device as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgelm.errors import RedactionError
from edgelm.runtime.chat_model import ChatRequest
from edgelm.runtime.form import Form
from edgelm.runtime.sampling import SamplingParams
from edgelm.runtime.tool_calls import Tool, ToolUse

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
# Words of JSON schema, which are nobody's data, though they could be somebody's name.
_LABELLED = frozenset({"const", "default", "enum", "example", "examples"})  # values of the property that they are said of
_RULES = frozenset({"pattern", "patternProperties", "$ref", "$dynamicRef"})  # mean something else when they are rewritten
_WORDS = _LABELLED | _RULES | frozenset(
    {"type", "properties", "required", "items", "prefixItems", "additionalProperties", "title", "description", "format", "anyOf", "oneOf"}
    | {"allOf", "not", "if", "then", "else", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "$defs"}
    | {"definitions", "$schema", "$id", "$comment", "contains", "propertyNames", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)  # fmt: skip
_MAX_DEPTH = 64
_MAX_BITS = 256  # of a whole number; longer ones are written out in quadratic time


@dataclass(frozen=True)
class Place:
    """Where a text is.

    Attributes:
        where: its path in the request, for messages.
        label: the key that it is the value of, where there is one.
        is_fixed: it cannot be replaced without changing what the request asks.
    """

    where: str
    label: str = ""
    is_fixed: bool = False


Visit = Callable[[str, Place], str]
"""Takes a text and where it is, and gives what shall be there instead."""


def rewritten(request: ChatRequest, visit: Visit) -> ChatRequest:
    """The request with all its texts replaced; parts of a message are joined, since a text may go from one to the next.

    Raises:
        RedactionError: there is something whose texts are not known.
    """
    messages = [_message(message, f"messages[{i}]", visit) for i, message in enumerate(request.messages)]
    return replace(request, messages=messages, params=_params(request.params, visit), tools=_tool_use(request.tools, visit))


def _message(message: object, where: str, visit: Visit) -> dict[str, Any]:
    fields = _fields(message, where, {"role", "content", "name", "tool_calls", "tool_call_id", "refusal"})
    if fields.get("role") not in _ROLES:
        raise RedactionError(f"{where} has a role that is not known; such a request is answered on this device only")
    for name in ("name", "tool_call_id", "refusal"):
        if fields.get(name) is not None:
            fields[name] = visit(_text(fields[name], f"{where}.{name}"), Place(f"{where}.{name}"))
    if fields.get("content") is not None:
        fields["content"] = _content(fields["content"], f"{where}.content", visit, fields["role"] == "tool")
    if fields.get("tool_calls") is not None:
        calls = _list(fields["tool_calls"], f"{where}.tool_calls")
        fields["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]", visit) for i, call in enumerate(calls)]
    return fields


def _content(content: object, where: str, visit: Visit, is_result: bool) -> str | list[dict[str, Any]]:
    if not isinstance(content, str):
        parts = [_fields(part, f"{where}[{i}]", {"type", "text"}) for i, part in enumerate(_list(content, where))]
        if any(part.get("type") != "text" for part in parts):
            raise RedactionError(f"{where} has a part that is no text; such a request is answered on this device only")
        joined = "".join(_text(part.get("text"), where) for part in parts)
        return [{"type": "text", "text": _content(joined, where, visit, is_result)}] if parts else []
    value = _read_json(content) if is_result else None
    return _json_text(content, value, Place(where), visit) if isinstance(value, dict | list) else visit(content, Place(where))


def _call(call: object, where: str, visit: Visit) -> dict[str, Any]:
    fields = _fields(call, where, {"id", "type", "function", "index"})
    if fields.get("type", "function") != "function" or not isinstance(fields.get("index", 0), int):
        raise RedactionError(f"{where} is no call of a function; such a request is answered on this device only")
    if fields.get("id") is not None:
        fields["id"] = visit(_text(fields["id"], f"{where}.id"), Place(f"{where}.id"))
    function = _fields(fields.get("function"), f"{where}.function", {"name", "arguments"})
    visit(_text(function.get("name"), f"{where}.function.name"), Place(f"{where}.function.name", is_fixed=True))
    place = Place(f"{where}.function.arguments")
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        value = _read_json(arguments)
        if value is None:
            raise RedactionError(f"{place.where} is no JSON, or has a name twice; such a request is answered on this device only")
        function["arguments"] = _json_text(arguments, value, place, visit)
    elif isinstance(arguments, Mapping):
        function["arguments"] = _value(arguments, place, visit)
    elif not isinstance(arguments, str):
        raise RedactionError(f"{place.where} is neither an object nor its text; such a request is answered on this device only")
    return {**fields, "function": function}


def _params(params: SamplingParams, visit: Visit) -> SamplingParams:
    stop = tuple(visit(text, Place("stop")) for text in params.stop_strings)
    form = params.form
    if form is not None and form.kind == "json_schema":
        schema = _read_json(form.text)
        if schema is None:
            raise RedactionError("the form's JSON schema is no JSON, or has a name twice; such a request is answered on this device only")
        form = Form("json_schema", _json_text(form.text, schema, Place("form"), visit, is_schema=True))
    elif form is not None:
        visit(form.text, Place("form", is_fixed=True))
    return replace(params, stop=stop, form=form)


def _tool_use(tools: ToolUse | None, visit: Visit) -> ToolUse | None:
    return None if tools is None else replace(tools, tools=[_tool(tool, f"tools[{i}]", visit) for i, tool in enumerate(tools.tools)])


def _tool(tool: Tool, where: str, visit: Visit) -> Tool:
    visit(tool.name, Place(f"{where}.name", is_fixed=True))
    description = visit(tool.description, Place(f"{where}.description"))
    return replace(tool, description=description, parameters=_value(tool.parameters, Place(f"{where}.parameters"), visit, is_schema=True))


def _json_text(text: str, value: object, place: Place, visit: Visit, is_schema: bool = False) -> str:
    """The JSON text with the strings in its value replaced: as it was written, if none was."""
    new = _value(value, place, visit, is_schema)
    return text if new == value else json.dumps(new, ensure_ascii=False)


def _value(value: object, place: Place, visit: Visit, is_schema: bool = False, depth: int = 0) -> Any:
    """A value of JSON's types with its strings, names of fields among them, replaced. A number that is replaced becomes a string."""
    if depth > _MAX_DEPTH:
        raise RedactionError(f"{place.where} is nested more than {_MAX_DEPTH} deep; such a request is answered on this device only")
    if isinstance(value, str):
        return visit(value, place)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) or (isinstance(value, int) and value.bit_length() <= _MAX_BITS):
        text = visit(str(value), place)
        return value if text == str(value) else text
    if isinstance(value, list | tuple):
        return [_value(each, place, visit, is_schema, depth + 1) for each in value]
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RedactionError(f"{place.where} holds what JSON has no type for; such a request is answered on this device only")
    new: dict[str, Any] = {}
    for key, each in value.items():
        is_word = is_schema and key in _WORDS
        if (
            is_word
            and key == "type"
            and all(isinstance(name, str) and name in _TYPES for name in (each if isinstance(each, list) else [each]))
        ):
            new[key] = each
            continue
        label = place.label if is_word and key in _LABELLED else "" if is_word else key
        below = Place(place.where, label, place.is_fixed or (is_word and key in _RULES))
        new_key = key if is_word else visit(key, replace(place, label=""))
        new[new_key] = _value(each, below, visit, is_schema, depth + 1)
    return new


def _read_json(text: str) -> object:
    """What a JSON text says; None where it is none, or not clear."""
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        return None


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):  # the first of two would be sent without having been read
        raise ValueError("a name twice")
    return value


def _fields(value: object, where: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not known.issuperset(value):
        raise RedactionError(f"{where} is no object, or has fields that are not known; such a request is answered on this device only")
    return dict(value)


def _list(value: object, where: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise RedactionError(f"{where} is no list; such a request is answered on this device only")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RedactionError(f"{where} is no text; such a request is answered on this device only")
    return value
