"""Text to bytes and back, for text that may be no valid Unicode."""

from __future__ import annotations

import re

from edgelm.errors import InvalidRequestError

_LAST_CODE_POINT = 0x10FFFF
_REPLACEMENT = "\ufffd"
# By the upper half of the first byte.
_LENGTHS = (1,) * 12 + (2, 2, 3, 4)
_SEQUENCE = re.compile(rb"[\x00-\x7f]+|[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf7][\x80-\xbf]{3}|.", re.DOTALL)


def to_bytes(text: str | bytes) -> bytes:
    """UTF-8 of a text; surrogates of the surrogateescape kind become the bytes that they stand for, others three bytes of their own.

    Raises:
        InvalidRequestError: neither str nor bytes.
    """
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise InvalidRequestError(f"text must be str or bytes, not {type(text).__name__}")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def decode_leniently(data: bytes) -> str:
    """Text of bytes that should be UTF-8, with U+FFFD for each byte that is none.

    As in llama.cpp, sequences that are too long for their character, and surrogates, are taken for what they say. Sequences beyond
    U+10FFFF, which make llama.cpp abort, are bytes that are none.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "".join(_decode_sequence(match[0]) for match in _SEQUENCE.finditer(data))


def _decode_sequence(sequence: bytes) -> str:
    if sequence[0] < 0x80:
        return sequence.decode("ascii")
    if len(sequence) == 1:
        return _REPLACEMENT
    point = sequence[0] & (0x7F >> len(sequence))
    for byte in sequence[1:]:
        point = point << 6 | byte & 0x3F
    return chr(point) if point <= _LAST_CODE_POINT else _REPLACEMENT * len(sequence)


def split_by_lead_bytes(data: bytes) -> list[str]:
    """Characters by the length that their first byte announces, whatever follows; what is no UTF-8 becomes lone surrogates."""
    characters, at = [], 0
    while at < len(data):
        length = _LENGTHS[data[at] >> 4]
        characters.append(data[at : at + length].decode("utf-8", "surrogateescape"))
        at += length
    return characters
