"""Sizes of files as people write them."""

from __future__ import annotations

import math
import re

from edgelm.errors import InvalidRequestError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([a-z]*)", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of a size such as "90MB" (10^6 bytes each) or "1.5 GiB" (2^30), rounded down; at least 1.

    Raises:
        InvalidRequestError: not a number above zero with one of the units.
    """
    match = _SIZE.fullmatch(text.replace(" ", ""))
    if match is None:
        raise InvalidRequestError(f"{text!r} is not a size; write a number and a unit, such as 90MB or 1.5GiB")
    number, unit = match.groups()
    if not unit:
        raise InvalidRequestError(f"the size {text!r} has no unit; write for example {number}MB")
    if unit.upper() not in _UNITS:
        raise InvalidRequestError(f"the size {text!r} has the unit {unit!r}; choose one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB")
    size = float(number) * _UNITS[unit.upper()]
    if not 1 <= size < math.inf:
        raise InvalidRequestError(f"the size {text!r} is not between one byte and what a disk holds; write for example 90MB")
    return int(size)


def format_size(n_bytes: int) -> str:
    """As people read it: "90.1 MB"; below a megabyte in bytes."""
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 10**6 else f"{n_bytes:,} bytes"
