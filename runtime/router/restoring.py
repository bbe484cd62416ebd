"""An answer in which what was replaced by placeholders is put back, while it comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edgelm.runtime.chat_model import Event, Finish, TextDelta, ToolCallDelta
from edgelm.runtime.router.placeholders import Restorer
from edgelm.runtime.router.redact import Redaction
from edgelm.runtime.tool_calls import CallPiece


class AnswerRestorer:
    """For one answer. Only what may still become a placeholder is held back."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._text = redaction.restorer(in_json=redaction.request.params.form is not None)
        self._calls: dict[int, Restorer] = {}

    def push(self, event: Event) -> Iterator[Event]:
        """An event of the cloud's answer; what can be shown of it now."""
        match event:
            case TextDelta():
                yield from self._shown(self._text.push(event.text))
            case ToolCallDelta(choice, piece):
                if piece.index not in self._calls:
                    yield from self._rest(choice)
                    self._calls[piece.index] = self._redaction.restorer(in_json=True)
                yield ToolCallDelta(choice, replace(piece, arguments=self._calls[piece.index].push(piece.arguments)))
            case Finish(choice):
                yield from self._rest(choice)
                yield event
            case _:
                yield event

    def _rest(self, choice: int) -> Iterator[Event]:
        """What is held back of the text and of the calls so far, before something else begins."""
        yield from self._shown(self._text.finish())
        for index, restorer in self._calls.items():
            if rest := restorer.finish():
                yield ToolCallDelta(choice, CallPiece(index, rest))

    def _shown(self, text: str) -> Iterator[Event]:
        if text:
            yield TextDelta(0, text)
