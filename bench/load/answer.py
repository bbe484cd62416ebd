"""What has arrived of one streamed answer, and what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from edgelm.bench.load.events import BadAnswerError, Event

_GAVE_UP = ("error", "abort")


@dataclass
class Answer:
    """The answer to one request so far.

    Attributes:
        stamps_s: when each piece of text arrived.
        n_prompt, n_generated: tokens as the server counts them; None as long as it did not say.
        finished: the server said why the text ends.
        done: the server said that the stream ends.
    """

    stamps_s: list[float] = field(default_factory=list)
    n_prompt: int | None = None
    n_generated: int | None = None
    finished: bool = False
    done: bool = False

    def take(self, event: Event, time_s: float) -> None:
        """Take an event that arrived at this time.

        Raises:
            BadAnswerError: it is no event of an OpenAI-compatible stream, or tells of an error.
        """
        if event.data == b"[DONE]":
            self.done = True
            return
        fields = _json_object(event.data)
        if event.name == "error" or fields.get("error") is not None:
            raise BadAnswerError("error in the stream", event.data.decode(errors="replace"))
        self._count(fields.get("usage"))
        choices = fields.get("choices", [])
        if not isinstance(choices, list):
            raise BadAnswerError("malformed event", event.data.decode(errors="replace"))
        have_text = [self._has_text(choice) for choice in choices]  # all are looked at: the last may tell of an error
        if any(have_text):
            self.stamps_s.append(time_s)

    def check_whole(self) -> None:
        """After the stream has ended.

        Raises:
            BadAnswerError: the server did not say why the answer ends here, or there is no text in it.
        """
        if not self.finished:  # llama-cpp-python's server ends a stream that gives way to another request with [DONE] alone
            raise BadAnswerError("ended without finish_reason" if self.done else "stream ended early")
        if not self.stamps_s:
            raise BadAnswerError("empty answer")

    def _has_text(self, choice: Any) -> bool:
        if not isinstance(choice, dict):
            raise BadAnswerError("malformed event")
        reason = choice.get("finish_reason")
        if reason in _GAVE_UP:
            raise BadAnswerError("server gave up", str(reason))
        self.finished = self.finished or reason is not None
        source = choice.get("delta", choice)  # chat completions have the text in a delta
        if not isinstance(source, dict):
            raise BadAnswerError("malformed event")
        texts = [source.get(name) for name in ("content", "reasoning_content", "reasoning", "text")]
        if any(text is not None and not isinstance(text, str) for text in texts):
            raise BadAnswerError("malformed event")
        return any(texts)

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        self.n_prompt = _count_of(usage.get("prompt_tokens")) or self.n_prompt
        self.n_generated = _count_of(usage.get("completion_tokens")) or self.n_generated


def _count_of(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise BadAnswerError("malformed JSON", data[:200].decode(errors="replace")) from None
    if not isinstance(fields, dict):
        raise BadAnswerError("malformed event", data[:200].decode(errors="replace"))
    return fields
