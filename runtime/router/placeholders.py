"""What stands in a text for a value that stays on the device, and the way back.

A placeholder is EMAIL_1_9f3a62c0: the kind, so that a model can reason about it; a number, unique in the request; and the request's tag,
eight random hexadecimal digits that are nowhere else in the request, so that nobody who writes a text can write a placeholder.

It is a plain word, without brackets or other marks. Models copy such identifiers faithfully. JSON encoders, HTML and URLs have no reason to
escape it, where angle brackets become \\u003c, &lt; and %3C on the way, or are taken for markup. Markdown leaves underscores inside a word
alone. Fields of APIs that take letters, digits, _ and - only, such as names of participants, take it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

_OTHER = re.compile(r"[^A-Z]+")
_MAX_LABEL = 24
# Models write other cases, hyphens or spaces, or escape the underscore as markdown does; in JSON that backslash is doubled.
_SEPARATOR = r"\\{0,2}[_ -]"
_MAX_SEPARATOR = 3


class Placeholders:
    """The placeholders of one request.

    Args:
        tag: hexadecimal digits that are in no text of the request.
    """

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._kinds: dict[str, str] = {}
        self._by_value: dict[str, str] = {}
        self._by_number: list[str] = []
        self._known = re.compile(rf"_(\d{{1,9}})_{tag}")

    def of(self, value: str, kind: str) -> str:
        """What stands for a value: the same for the same value."""
        if value not in self._by_value:
            label = _OTHER.sub("_", kind.upper()).strip("_")[:_MAX_LABEL].strip("_") or "DATA"
            self._by_number.append(f"{label}_{len(self._by_number) + 1}_{self._tag}")
            self._by_value[value] = self._by_number[-1]
            self._kinds[value] = kind
        return self._by_value[value]

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where placeholders are in a text, in order."""
        numbered = [(match.end(), int(match[1])) for match in self._known.finditer(text)]
        known = [(end, self._by_number[number - 1]) for end, number in numbered if 0 < number <= len(self._by_number)]
        return [(end - len(name), end) for end, name in known if text.endswith(name, 0, end)]

    @property
    def kinds(self) -> Mapping[str, str]:
        """The kind of each value, in the order in which they came."""
        return self._kinds

    @property
    def values(self) -> Mapping[str, str]:
        """The value of each placeholder."""
        return {name: value for value, name in self._by_value.items()}


class Restorer:
    """Puts the values back into one text that arrives in pieces; another text needs another restorer.

    What was cut into which pieces makes no difference. A placeholder is known again in another case, with hyphens or spaces in place of its
    underscores, and with the backslashes of markdown before them.

    Args:
        values: of each placeholder.
        in_json: the text is JSON, in whose strings a value's quotes, backslashes and control characters must be escaped.
    """

    def __init__(self, values: Mapping[str, str], in_json: bool = False) -> None:
        self._values = {
            _canonical(name): json.dumps(value, ensure_ascii=False)[1:-1] if in_json else value for name, value in values.items()
        }
        self._beginnings = {name[:n] for name in self._values for n in range(1, len(name))}
        self._longest = max((len(name) + (_MAX_SEPARATOR - 1) * name.count("_") for name in self._values), default=1) - 1
        any_name = "|".join(_SEPARATOR.join(name.split("_")) for name in self._values)
        self._pattern = re.compile(any_name, re.IGNORECASE | re.ASCII) if values else None
        self._held = ""

    def push(self, text: str) -> str:
        """Add text; what can be shown of it now. Held back is only what may still become a placeholder."""
        text = self._held + text
        pieces: list[str] = []
        done = 0
        if self._pattern is not None:
            for match in self._pattern.finditer(text):
                pieces += [text[done : match.start()], self._values[_canonical(match[0])]]
                done = match.end()
        rest = text[done:]
        lengths = range(min(self._longest, len(rest)), 0, -1)
        n_held = next((n for n in lengths if _canonical(rest[-n:]) in self._beginnings), 0)
        self._held = rest[len(rest) - n_held :]
        return "".join([*pieces, rest[: len(rest) - n_held]])

    def finish(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held


def _canonical(text: str) -> str:
    return text.replace("\\", "").replace("-", "_").replace(" ", "_").lower()
