"""A text as patterns should see it, with the way back to the characters it came from."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

_UNUSUAL = re.compile(r"[^\x00-\x7f]|\\u[0-9a-fA-F]{4}")
_FIRST_MARK, _LAST_MARK = "\u0300", "\u036f"


@dataclass(frozen=True)
class PlainText:
    """What a text says, without the ways to write it differently.

    Attributes:
        text: the plain text.
        places: for each of its characters, where the original's character begins; None if they are the same.
        ends: likewise, where it ends.
    """

    text: str
    places: list[int] | None = None
    ends: list[int] | None = None

    @classmethod
    def of(cls, text: str) -> PlainText:
        """Full-width and other compatible characters become the usual ones, digits of all scripts 0 to 9, all spaces and hyphens the ASCII
        ones, accented letters their base (so that both of Unicode's ways to write them are one); invisible characters go. What JSON
        writes as \\u0041 is read as the character it stands for.
        """
        if not _UNUSUAL.search(text):
            return cls(text)
        pieces: list[str] = []
        places: list[int] = []
        ends: list[int] = []
        done = 0
        for match in _UNUSUAL.finditer(text):
            start, end = match.span()
            pieces.append(text[done:start])
            places.extend(range(done, start))
            ends.extend(range(done + 1, start + 1))
            plain = _plain(match[0] if end == start + 1 else chr(int(match[0][2:], 16)))
            pieces.append(plain)
            places.extend([start] * len(plain))
            ends.extend([end] * len(plain))
            done = end
        pieces.append(text[done:])
        places.extend(range(done, len(text)))
        ends.extend(range(done + 1, len(text) + 1))
        return cls("".join(pieces), places, ends)

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Where text[start:end], which is not empty, is in the original."""
        if self.places is None or self.ends is None:
            return start, end
        return self.places[start], self.ends[end - 1]


@lru_cache(4096)
def _plain(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cf" or "\ufe00" <= character <= "\ufe0f":
        return ""
    if category == "Pd" or character == "\u2212":  # all dashes, and the minus sign
        return "-"
    if category == "Nd":
        return str(unicodedata.digit(character))
    return "".join(each for each in unicodedata.normalize("NFKD", character) if not _FIRST_MARK <= each <= _LAST_MARK)
