"""Counting what a template uses up, and estimates of what single operations will make."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from jinja2.exceptions import TemplateRuntimeError

MAX_INTEGER_BITS = 4096
# Of a number that says how wide, or how deep, something is to be written.
MAX_WIDTH = 999
# What a value costs beyond its characters, as it takes memory of its own.
OBJECT_COST = 16

_VIEWS: tuple[type[Collection[Any]], ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS: tuple[type[Collection[Any]], ...] = (list, tuple, dict, set, frozenset, range, *_VIEWS)
_TOO_MUCH = "it makes too much text or too many values"


class LimitError(TemplateRuntimeError):
    """The template takes too long, or makes too much."""


class Meter:
    """What one rendering may still use.

    Args:
        steps: operations, where each turn of a loop counts all operations in its body.
        size: characters and objects made, in sum.
        largest: characters and objects of one value, written out.
        seconds: time from now.
        known: written size of each container among the values given to the template, by its id().
    """

    def __init__(self, steps: int, size: int, largest: int, seconds: float, known: Mapping[int, int] = MappingProxyType({})) -> None:
        self._steps = steps
        self._size = size
        self._largest = largest
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._known = known

    def step(self, count: int = 1) -> None:
        self._steps -= count
        if self._steps < 0:
            raise LimitError("it takes too many steps")
        if time.monotonic() > self._deadline:
            raise LimitError(f"it takes longer than {self._seconds:g} s")

    def charge(self, size: int) -> None:
        self._size -= size
        if self._size < 0:
            raise LimitError(_TOO_MUCH)

    def admit(self, value: Any) -> Any:
        """Check and charge a value that an operation gave; what would be computed later is computed now."""
        if isinstance(value, Iterator):
            value = list(self._drawn(value))
        if isinstance(value, str):
            self.charge(len(value))
        elif isinstance(value, _CONTAINERS):
            self.charge(OBJECT_COST * len(value))
            self.check_size(value)
        elif isinstance(value, int):
            self.check_size(value)
        return value

    def check_size(self, value: Any) -> int:
        return written_size(value, self._largest, self._known)

    def _drawn(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.step()
            self.charge(OBJECT_COST)
            yield value


def written_size(value: Any, limit: int, known: Mapping[int, int]) -> int:
    """Characters and objects of a value as it would be written out, shared parts counted each time; counting ends beyond the limit.

    Raises:
        LimitError: beyond the limit, or a number of too many digits.
    """
    size, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        size += OBJECT_COST
        if id(item) in known:
            size += known[id(item)]
        elif isinstance(item, str | bytes | range):
            size += len(item)
        elif isinstance(item, int) and item.bit_length() > MAX_INTEGER_BITS:
            raise LimitError("a number has too many digits")
        elif isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, _CONTAINERS):
            waiting += item
        if size + OBJECT_COST * len(waiting) > limit:
            raise LimitError(_TOO_MUCH)
    return size


def check_widths(numbers: Iterable[str]) -> None:
    if any(len(number) > len(str(MAX_WIDTH)) for number in numbers):
        raise LimitError(f"a width is larger than {MAX_WIDTH}")


def check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * max(exponent, 0) > 2 * MAX_INTEGER_BITS:
        raise LimitError("a number has too many digits")


def replaced_size(text: str, old: str, new: str) -> int:
    """At most so many characters does text.replace(old, new) have."""
    return len(text) + text.count(old) * len(new)
