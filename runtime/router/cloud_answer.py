"""What an OpenAI-compatible endpoint sends, as events. It is as untrusted as anything from a network."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any

from edgelm.errors import CloudError
from edgelm.runtime.chat_model import Event, Finish, TextDelta, ToolCallDelta
from edgelm.runtime.router.egress import Response
from edgelm.runtime.router.sse import EventReader
from edgelm.runtime.tool_calls import CallPiece

Json = dict[str, Any]
_REASONS = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls"}
_MOST_CALLS = 128
_MOST_TOKENS = 1 << 27
_CODE = re.compile(r"[a-z_]{1,40}")


@dataclass(frozen=True)
class CloudUsage:
    """What an endpoint says that an answer took, in its own tokens."""

    n_input: int
    n_output: int


class CloudAnswer:
    """Reads one answer.

    Attributes:
        usage: where the endpoint has told it.
        is_finished: the answer has come to its end, so that the usage is of all of it.
    """

    def __init__(self) -> None:
        self.usage: CloudUsage | None = None
        self.is_finished = False
        self._n_calls = 0
        self._is_in_call = False
        self._has_text = False

    async def events(self, response: Response) -> AsyncGenerator[Event, None]:
        """Text and calls as they come; a Finish at the end.

        Raises:
            CloudError: it is cut off, or no answer at all.
        """
        if response.kind == "application/json":  # an endpoint that does not stream
            for event in self._read(_object(b"".join([piece async for piece in response.pieces()])), "message"):
                yield event
        elif response.kind == "text/event-stream":
            reader = EventReader()
            async for piece in response.pieces():
                for data in reader.push(piece):
                    if data.strip() == "[DONE]":
                        self._check_end()
                        return
                    for event in self._read(_object(data), "delta"):
                        yield event
        else:
            raise CloudError(f"the endpoint answered with {response.kind!r:.60}, which is no answer", "malformed")
        self._check_end()

    def _check_end(self) -> None:
        if not self.is_finished:
            raise CloudError("the endpoint's answer was cut off before its end", "broken off")
        if not (self._has_text or self._n_calls):
            raise CloudError("the endpoint's answer is empty", "empty")

    def _read(self, chunk: Json, part: str) -> Iterator[Event]:
        """
        Args:
            part: where a choice has its text.
        """
        try:
            if chunk.get("error"):
                code = chunk["error"].get("code") or chunk["error"].get("type")
                told = code if isinstance(code, str) and _CODE.fullmatch(code) else "no code"  # its text may repeat what was asked
                raise CloudError(f"the endpoint reports an error in place of an answer ({told})", "reported")
            if chunk.get("usage"):
                self.usage = _usage(chunk["usage"])
            for choice in chunk.get("choices") or ():
                if choice.get("index", 0) == 0 and not self.is_finished:
                    yield from self._choice(choice, choice.get(part) or {})
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise CloudError(f"the endpoint's answer is not of OpenAI's form ({type(error).__name__})", "malformed") from None

    def _choice(self, choice: Json, message: Json) -> Iterator[Event]:
        text = message.get("content") or message.get("refusal")
        if text:
            if not isinstance(text, str):
                raise TypeError
            self._has_text, self._is_in_call = True, False
            yield TextDelta(0, text)
        for place, call in enumerate(message.get("tool_calls") or ()):
            yield ToolCallDelta(0, self._piece(call, call.get("index", place)))
        reason = choice.get("finish_reason")
        if reason is not None:
            if reason not in _REASONS:
                raise CloudError(
                    f"the endpoint ended its answer early ({reason if _CODE.fullmatch(str(reason)) else 'no reason'})", "filtered"
                )
            self.is_finished = True
            yield Finish(0, "tool_calls" if self._n_calls else "length" if reason == "length" else "stop")

    def _piece(self, call: Json, index: int) -> CallPiece:
        function = call.get("function") or {}
        name, arguments = function.get("name"), function.get("arguments") or ""
        if not isinstance(index, int) or not isinstance(arguments, str) or not 0 <= index <= min(self._n_calls, _MOST_CALLS - 1):
            raise TypeError
        if index < self._n_calls:
            if index < self._n_calls - 1 or not self._is_in_call:
                raise TypeError  # one call after the other, and nothing between the pieces of one
            return CallPiece(index, arguments)
        if not isinstance(name, str):
            raise TypeError
        self._n_calls += 1
        self._is_in_call = True
        return CallPiece(index, arguments, str(call.get("id") or f"call_{uuid.uuid4().hex[:24]}")[:128], name)


def _usage(told: Json) -> CloudUsage:
    n_input, n_output = int(told["prompt_tokens"]), int(told["completion_tokens"])
    if not (0 <= n_input < _MOST_TOKENS and 0 <= n_output < _MOST_TOKENS):
        raise ValueError
    return CloudUsage(n_input, n_output)


def _object(data: str | bytes) -> Json:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CloudError("the endpoint sent what is no JSON object", "malformed")
    return value
