"""Server-sent events out of the bytes of an answer (WHATWG HTML standard, section 9.2), as far as language model servers use them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgelm.errors import MeasurementError

_MAX_BYTES = 1 << 20


class BadAnswerError(MeasurementError):
    """An answer that must not count as one; its text is the kind of error, in a few words that can be counted.

    Attributes:
        detail: what the server said itself.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.detail = detail


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes:
        name: of its kind; "message" where the server does not name it.
        data: the payload.
    """

    name: str
    data: bytes


class EventDecoder:
    """Gives each event as soon as its last byte is there.

    Lines end at a line feed alone: text may hold other separators (U+2028), which JSON need not escape.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> Iterator[Event]:
        """Take what has arrived; the events that it completes.

        Raises:
            BadAnswerError: it is longer than any event of a language model.
        """
        *lines, self._rest = (self._rest + received).split(b"\n")
        if len(self._rest) + sum(map(len, self._data)) > _MAX_BYTES:
            raise BadAnswerError("event without an end")
        for line in lines:
            yield from self._take(line.removesuffix(b"\r"))

    def end(self) -> Iterator[Event]:
        """The stream has ended; its last event may lack the empty line, but not the end of its own line."""
        yield from self._take(b"")

    def _take(self, line: bytes) -> Iterator[Event]:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if line:
            if field == b"data":
                self._data.append(value)
            elif field == b"error":  # llama-server has it so
                self._name, self._data = "error", [value]
            elif field == b"event":
                self._name = value.decode(errors="replace")
            return
        name, data = self._name or "message", b"\n".join(self._data)
        self._name, self._data = "", []
        if data:
            yield Event(name, data)
