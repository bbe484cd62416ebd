"""Options of an engine, as a program or a command line gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from edgelm.backends.options import NoOptions, read_options
from edgelm.errors import InvalidRequestError


@dataclass(frozen=True)
class Options:
    flag: bool = False
    count: int = 3
    rate: float | None = None
    name: str = "x"
    names: tuple[str, ...] = ("a",)
    pairs: Mapping[str, str] = field(default_factory=dict)


def test_defaults() -> None:
    assert read_options(Options, {}, "engine") == Options()


def test_values_of_a_program() -> None:
    values = {"flag": True, "count": 7, "rate": 2, "name": "y", "names": ["b", "c"], "pairs": {"k": 1}}
    assert read_options(Options, values, "engine") == Options(True, 7, 2.0, "y", ("b", "c"), {"k": "1"})


def test_values_of_a_command_line() -> None:
    values = {"flag": "yes", "count": "7", "rate": "0.5", "names": "b, c", "pairs": "k=1,l=a=b", "pairs.m": "2"}
    assert read_options(Options, values, "engine") == Options(True, 7, 0.5, "x", ("b", "c"), {"k": "1", "l": "a=b", "m": "2"})
    assert read_options(Options, {"rate": "none"}, "engine").rate is None
    assert read_options(Options, {"name": "none"}, "engine").name == "none"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flag", "maybe"),
        ("flag", 1),
        ("count", "x"),
        ("count", True),
        ("count", 1.5),
        ("rate", "fast"),
        ("name", 5),
        ("names", 3),
        ("pairs", "k"),
    ],
)
def test_values_of_another_type_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"option '{name}' is .*; give "):
        read_options(Options, {name: value}, "engine")


def test_unknown_names_list_the_known_ones() -> None:
    for name in ("colour", "count.x"):
        with pytest.raises(
            InvalidRequestError, match=f"backend 'engine' has no option '{name}'; it has flag, count, rate, name, names, pairs"
        ):
            read_options(Options, {name: 1}, "engine")
    with pytest.raises(InvalidRequestError, match="it has none"):
        read_options(NoOptions, {"x": 1}, "engine")
