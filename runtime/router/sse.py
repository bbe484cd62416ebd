"""Server-sent events, as far as OpenAI's streams use them: the data of each event.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator

from edgelm.errors import CloudError

MOST_CHARACTERS = 4 << 20


class EventReader:
    """Bytes in, in whatever pieces they come; the data of whole events out."""

    def __init__(self) -> None:
        self._decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")("strict"), translate=True)
        self._rest = ""
        self._data: list[str] = []

    def push(self, piece: bytes) -> Iterator[str]:
        """The events that a piece completes.

        Raises:
            CloudError: an event is larger than any answer's, or is no UTF-8.
        """
        try:
            text = self._decoder.decode(piece)
        except UnicodeDecodeError:
            raise CloudError("the endpoint's stream holds bytes that are no UTF-8", "malformed") from None
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) + sum(map(len, self._data)) > MOST_CHARACTERS:
            raise CloudError(f"the endpoint sent an event of more than {MOST_CHARACTERS:,} characters", "too large")
        for line in lines:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif not line and self._data:
                data, self._data = "\n".join(self._data), []
                yield data
