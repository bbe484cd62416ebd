"""Functions that a model may call: how it is told of them, held to them, and understood.

Calls are written as many models were taught to (Hermes, Qwen, SmolLM3):

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Oslo"}}
    </tool_call>

The grammar leaves no other way to begin one, so that they can be read while they are being written.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edgelm.errors import InvalidRequestError
from edgelm.runtime.form import Form

_MARK = "<tool_call>"
_BEGIN, _MIDDLE, _END = f'{_MARK}\n{{"name": "', '", "arguments": ', "}\n</tool_call>"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Tool:
    """A function.

    Attributes:
        parameters: JSON schema of its arguments, an object's.

    Raises:
        InvalidRequestError: the name has characters that names have not.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidRequestError(f"the tool's name is {self.name!r:.80}; names have 1 to 64 letters, digits, _ . or -")

    def described(self) -> dict[str, Any]:
        """In OpenAI's form, which templates take."""
        return {"type": "function", "function": {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}}


@dataclass(frozen=True)
class ToolUse:
    """Which tools an answer may use, and must.

    Attributes:
        tools: at least one.
        must: the answer is a call of one of them; otherwise it may be text as well.
        several: it may be more than one call.
    """

    tools: Sequence[Tool]
    must: bool = False
    several: bool = True

    def form(self) -> Form:
        """What answers may look like."""
        lines = ["%llguidance {}", "TEXT: /(.|\\n)*/", f"head[lazy]: TEXT {json.dumps(_MARK)}"]
        again = f'("\\n{_MARK}" call)*' if self.several else ""
        first = f"{json.dumps(_MARK)} call" if self.must else "head call"
        lines.append(f"start: {first} {again}" + ("" if self.must else " | TEXT"))
        lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(self.tools))))
        for i, tool in enumerate(self.tools):
            begin = json.dumps(_BEGIN.removeprefix(_MARK) + tool.name + _MIDDLE)
            lines.append(f"call_{i}: {begin} args_{i} {json.dumps(_END)}")
            lines.append(f"args_{i}: %json {Form.json_schema({**tool.parameters, **_NO_SPACES}).text}")
        return Form("lark", "\n".join(lines))


_NO_SPACES = {"x-guidance": {"whitespace_pattern": "[ ]"}}


def choose_tools(tools: Sequence[Tool], choice: str, several: bool, named: str | None = None) -> ToolUse | None:
    """What a request's choice of tools comes to; None for an answer without any.

    Args:
        choice: "auto", "none", or "required".
        several: an answer may be more than one call.
        named: the one that must be called, whatever the choice.

    Raises:
        InvalidRequestError: a call is wanted of a tool that there is not, or two tools have one name.
    """
    if len({tool.name for tool in tools}) < len(tools):
        raise InvalidRequestError("two tools have the same name")
    if named is not None:
        chosen = [tool for tool in tools if tool.name == named]
        if not chosen:
            raise InvalidRequestError(f"tool_choice names {named!r:.80}, which is none of the tools")
        return ToolUse(chosen, True, several)
    if choice == "required" and not tools:
        raise InvalidRequestError("tool_choice wants a call, but there are no tools")
    return ToolUse(tools, choice == "required", several) if tools and choice != "none" else None


@dataclass(frozen=True)
class CallPiece:
    """The next piece of a call.

    Attributes:
        index: which call of the answer, counted from 0.
        id, name: with the first piece only.
        arguments: the next characters of its JSON.
    """

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


class CallReader:
    """Tells text and calls apart while they arrive. Only what may still turn out to be a mark is held back.

    Attributes:
        n_calls: that have begun.
    """

    def __init__(self) -> None:
        self.n_calls = 0
        self._state: Literal["text", "name", "arguments"] = "text"
        self._held = ""

    def push(self, text: str) -> Iterator[str | CallPiece]:
        """Add text; what is known of it now."""
        self._held += text
        while True:
            mark = {"text": _BEGIN, "name": _MIDDLE, "arguments": _END}[self._state]
            before, found, after = self._held.partition(mark)
            if self._state == "name":
                if not found:
                    return
                self._held, self._state = after, "arguments"
                self.n_calls += 1
                yield CallPiece(self.n_calls - 1, "", f"call_{uuid.uuid4().hex[:24]}", before)
                continue
            n_known = len(before) if found else len(before) - _overlap(before, mark)
            yield from self._known(before[:n_known])
            self._held = after if found else before[n_known:]
            if not found:
                return
            self._state = "name" if self._state == "text" else "text"

    def finish(self) -> Iterator[str | CallPiece]:
        """What was held back, at the end."""
        if self._state != "name":
            yield from self._known(self._held)
        self._held = ""

    def _known(self, text: str) -> Iterator[str | CallPiece]:
        if self._state == "arguments":
            if text:
                yield CallPiece(self.n_calls - 1, text)
        elif text.strip() or (text and not self.n_calls):  # between calls there is nothing but a line's end
            yield text


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of the text that the mark begins with."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)


def has_tools(template: str) -> bool:
    """Whether a chat template tells the model of tools in this way."""
    return "tools" in template and _MARK in template


def written_out(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Messages for a template that knows no tools: the tools in the system message, calls and results as text."""
    rest = [_as_text(message) for message in messages]
    if not tools:
        return rest
    system = (
        "You may call functions to help with the user's query. "
        "You are provided with function signatures within <tools></tools> tags:\n<tools>\n"
        + "\n".join(json.dumps(tool.described(), ensure_ascii=False) for tool in tools)
        + f"\n</tools>\nTo call a function, answer with:\n{_BEGIN}function name{_MIDDLE}{{...}}{_END}"
    )
    if rest and rest[0]["role"] == "system":
        return [{"role": "system", "content": f"{rest[0]['content']}\n\n{system}"}, *rest[1:]]
    return [{"role": "system", "content": system}, *rest]


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content") or ""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    texts = [f"{_BEGIN}{call['name']}{_MIDDLE}{json.dumps(call['arguments'], ensure_ascii=False)}{_END}" for call in calls]
    return {"role": message["role"], "content": "\n".join([content, *texts] if content else texts)} if calls else dict(message)
