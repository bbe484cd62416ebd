"""From the bytes of tokens to text that may be shown: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of one generation into text.

    Held back are the bytes of an incomplete UTF-8 character and any suffix that could be the beginning of a stop string.
    Of several stop strings the one that is complete first counts, however the bytes were cut into tokens.

    Attributes:
        stopped_by: the stop string that ended the text, or None so far. Later bytes are ignored.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped_by: str | None = None
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, data: bytes) -> str:
        """Add bytes; returns the text that can be shown now. Bytes that can never become a character show as U+FFFD."""
        return self._release(self._decoder.decode(data), final=False)

    def finish(self) -> str:
        """The text still held back, after the last token; an incomplete character becomes U+FFFD."""
        return self._release(self._decoder.decode(b"", final=True), final=True)

    def _release(self, text: str, final: bool) -> str:
        if self.stopped_by is not None:
            return ""
        held = self._held + text
        self.stopped_by = self._first_complete(held)
        if self.stopped_by is not None:
            self._held = ""
            return held[: held.find(self.stopped_by)]
        n_shown = len(held) if final else len(held) - self._possible_stop(held)
        self._held = held[n_shown:]
        return held[:n_shown]

    def _first_complete(self, text: str) -> str | None:
        """The stop string that ends first in the text; of two that end together, the longer."""
        found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stop if stop in text]
        return min(found)[2] if found else None

    def _possible_stop(self, text: str) -> int:
        """Length of the longest suffix that is the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for n in range(min(longest, len(text)), 0, -1):
            suffix = text[-n:]
            if any(stop.startswith(suffix) for stop in self._stop):
                return n
        return 0
