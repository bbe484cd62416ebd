"""Options of one engine: a frozen dataclass, filled from a mapping that a person or a file wrote."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from edgelm.errors import InvalidRequestError

T = TypeVar("T")
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class NoOptions:
    """The options of an engine that has none."""


def read_options(kind: type[T], values: Mapping[str, object], engine: str) -> T:
    """An instance of the dataclass `kind`, with values of the mapping in place of its defaults.

    Texts are read as the field's type, as a command line gives them: "true", "7", "a,b" for a tuple, "a=b,c=d" for a mapping.
    "name.key" sets one key of the mapping called name.

    Raises:
        InvalidRequestError: a name that is no option, or a value of another type; and what the dataclass itself refuses.
    """
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for name, value in values.items():
        field, dot, key = name.partition(".")
        if field not in known or (dot and get_origin(hints[field]) is not Mapping):
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InvalidRequestError(f"the backend {engine!r} has no option {name!r}; {has}")
        if dot:
            given[field] = {**given.get(field, {}), key: str(value)}
        else:
            given[field] = _converted(value, hints[field], name)
    return kind(**given)


def _converted(value: object, hint: Any, name: str) -> Any:
    """The value as the type hint wants it."""
    if get_origin(hint) in (Union, types.UnionType):
        choices = [choice for choice in get_args(hint) if choice is not type(None)]
        if value is None or (isinstance(value, str) and value.lower() == "none" and len(choices) < len(get_args(hint))):
            return None
        hint = choices[0]
    origin = get_origin(hint) or hint
    if isinstance(value, str) and origin is not str:
        value = _parsed(value, origin, name)
    if origin is tuple and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if origin is Mapping and isinstance(value, Mapping):
        return {str(key): str(item) for key, item in value.items()}
    if origin is float and type(value) is int:
        return float(value)
    if type(value) is origin:
        return value
    raise InvalidRequestError(f"the option {name!r} is {value!r}; give {_wanted(origin)}")


def _parsed(text: str, origin: Any, name: str) -> object:
    try:
        if origin is bool:
            return _TRUTHS[text.lower()]
        if origin in (int, float):
            return origin(text)
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return dict(part.split("=", 1) for part in parts) if origin is Mapping else parts
    except (KeyError, ValueError):
        raise InvalidRequestError(f"the option {name!r} is {text!r}; give {_wanted(origin)}") from None


def _wanted(origin: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", tuple: "names separated by commas"}
    return words.get(origin, "key=value pairs separated by commas")
