"""Filters of chat templates that may make much of little, or that transformers defines otherwise than Jinja2."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from jinja2.filters import FILTERS
from markupsafe import escape

from edgelm.runtime.template_meter import MAX_WIDTH, LimitError, replaced_size

if TYPE_CHECKING:
    from edgelm.runtime.template_limits import LimitedEnvironment

_MAX_PRECISION = 99


def own_filters(environment: LimitedEnvironment) -> dict[str, Callable[..., Any]]:
    """The filters by name; they charge the environment's meter before they make something."""

    def charge(size: int) -> None:
        environment.meter.charge(size)

    def join(values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        items = list(values)
        if attribute is not None:
            items = [environment.getitem(item, attribute) for item in items]
        texts = [item if isinstance(item, str) else str(item) for item in items]
        charge(sum(map(len, texts)) + len(d) * len(texts))
        return d.join(texts)

    def replace(value: object, old: str, new: str, count: int | None = None) -> str:
        text = str(value)
        charge(replaced_size(text, old, new))
        return text.replace(old, new, -1 if count is None else count)

    def indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        columns = len(width) if isinstance(width, str) else width
        charge(len(text) + len(text.splitlines()) * max(columns, 0))
        indented: str = FILTERS["indent"](text, width, first, blank)
        return indented

    def center(text: str, width: int = 80) -> str:
        charge(max(width, 0))
        return text.center(width)

    def percent_format(text: str, *args: Any, **kwargs: Any) -> Any:
        if args and kwargs:
            raise TypeError("format takes either positional or keyword arguments")
        return environment.call_binop(None, "%", str(text), kwargs or args)  # type: ignore[arg-type]

    def round_number(value: float, precision: int = 0, method: str = "common") -> Any:
        if abs(precision) > _MAX_PRECISION:
            raise LimitError(f"a precision is larger than {_MAX_PRECISION}")
        return FILTERS["round"](value, precision, method)

    def total(values: Iterable[Any], attribute: str | int | None = None, start: float = 0) -> Any:
        if not isinstance(start, int | float):
            raise TypeError("sum starts from a number")
        numbers = values if attribute is None else [environment.getitem(item, attribute) for item in values]
        return sum(numbers, start)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: int | str | None = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        if indent is not None and (len(indent) if isinstance(indent, str) else indent) > MAX_WIDTH:
            raise LimitError(f"an indentation is larger than {MAX_WIDTH}")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        pieces = []
        for piece in encoder.iterencode(value):
            charge(len(piece))
            pieces.append(piece)
        return "".join(pieces)

    return {
        "join": join,
        "replace": replace,
        "indent": indent,
        "center": center,
        "format": percent_format,
        "round": round_number,
        "sum": total,
        "tojson": tojson,
        "safe": str,
        "e": lambda value: str(escape(value)),
        "escape": lambda value: str(escape(value)),
    }
