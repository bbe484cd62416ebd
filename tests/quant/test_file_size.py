from __future__ import annotations

import pytest

from edgelm.errors import InvalidRequestError
from edgelm.quant.file_size import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("90MB", 90_000_000),
        ("1.5GiB", 3 << 29),
        (" 90 mb ", 90_000_000),
        ("1000B", 1000),
        ("64kib", 65536),
        (".5 kB", 500),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_with_units(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("90", "has no unit; write for example 90MB"),
        ("90Mb/s", "is not a size"),
        ("90M", "has the unit 'M'; choose one of B, kB"),
        ("-5MB", "is not a size"),
        ("nanMB", "is not a size"),
        ("", "is not a size"),
        ("0MB", "not between one byte"),
        ("1" + "0" * 400 + "GB", "not between one byte"),
        ("٣MB", "is not a size"),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse_size(text)


def test_sizes_for_people() -> None:
    assert format_size(90_123_456) == "90.1 MB"
    assert format_size(1_234_500_000) == "1,234.5 MB"
    assert format_size(1620) == "1,620 bytes"
