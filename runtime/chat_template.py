"""Chat templates: from a list of messages to the text that the model was trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from threading import Lock
from traceback import extract_tb
from typing import Any

import jinja2

from edgelm.errors import InvalidRequestError, TemplateError
from edgelm.runtime.template_limits import LimitedEnvironment
from edgelm.runtime.template_meter import LimitError, Meter
from edgelm.runtime.tokenizer import Tokenizer

MAX_SOURCE_CHARACTERS = 65_536
# Of nested values in messages and tools.
_MAX_DEPTH = 100
_BASE_STEPS, _STEPS_PER_INPUT = 5_000_000, 100
_BASE_SIZE, _SIZE_PER_INPUT = 32_000_000, 32
_BASE_VALUE, _VALUE_PER_INPUT = 4_000_000, 4
# What operations on values of the wrong kind raise. Jinja2's own errors come on top.
_FAILURES = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


class ChatTemplate:
    """A chat template in Jinja2, as Hugging Face's models carry it, run in a sandbox with limits (see template_limits).

    Args:
        source: the template.
        bos_token, eos_token: texts of the tokens that begin and end a text, which templates may write.
        time_limit_s: seconds that one rendering may take.

    Raises:
        TemplateError: the template is malformed, too long, or uses what edgelm does not support.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "", *, time_limit_s: float = 3.0) -> None:
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._time_limit_s = time_limit_s
        self._environment = LimitedEnvironment()
        self._environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        # The environment holds the limits of the one rendering that is going on.
        self._lock = Lock()
        self._template = self._compile()

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer | None = None) -> ChatTemplate:
        """The chat template of a model.

        Args:
            metadata: the model file's.
            tokenizer: the model's, where it is open already.

        Raises:
            TemplateError: the model has none, or it is malformed.
        """
        source = metadata.get("tokenizer.chat_template")
        if not isinstance(source, str):
            raise TemplateError("this model has no chat template; use generate, or pass a template")
        tokenizer = tokenizer or Tokenizer.from_metadata(metadata)
        texts = ["" if token is None else tokenizer.token_text(token) for token in (tokenizer.bos_id, tokenizer.eos_id)]
        return cls(source, *texts)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The text of a conversation. Encode it with add_special=False: templates write the first token themselves.

        Args:
            messages: each with a "role" and a "content": a text, None, or a list of {"type": "text", "text": ...}, which are joined. Other
                keys ("name", "tool_calls", "reasoning_content", ...) are passed on; arguments of tool calls may be JSON texts.
            tools: descriptions of functions in OpenAI's form.
            add_generation_prompt: end with what the model's answer begins with.
            extra: further variables of the template ("documents", "enable_thinking", ...).

        Raises:
            InvalidRequestError: messages or tools are not of this form.
            TemplateError: the template refuses these messages, fails on them, or exceeds its limits.
        """
        known: dict[int, int] = {}
        values = {
            "messages": [_message(message, place) for place, message in enumerate(_list_of_objects(messages, "messages"))],
            "tools": None if tools is None else [dict(tool) for tool in _list_of_objects(tools, "tools")],
            **{name: value for name, value in extra.items() if name not in ("messages", "tools")},
        }
        size = sum(_input_size(value, name, known, 0) for name, value in values.items())
        meter = Meter(
            _BASE_STEPS + _STEPS_PER_INPUT * size,
            _BASE_SIZE + _SIZE_PER_INPUT * size,
            _BASE_VALUE + _VALUE_PER_INPUT * size,
            self._time_limit_s,
            known,
        )
        with self._lock:
            return self._render({**self._tokens, "add_generation_prompt": add_generation_prompt, **values}, meter)

    def _compile(self) -> jinja2.Template:
        if len(self.source) > MAX_SOURCE_CHARACTERS:
            raise TemplateError(f"the chat template has {len(self.source)} characters; edgelm runs at most {MAX_SOURCE_CHARACTERS}")
        try:
            return self._environment.compile_limited(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"the chat template is malformed, line {error.lineno}: {error.message}") from None
        except (RecursionError, SyntaxError, MemoryError, ValueError, OverflowError) as error:
            raise TemplateError(
                f"the chat template is nested too deeply, or holds a number that is none ({type(error).__name__})"
            ) from None

    def _render(self, values: Mapping[str, Any], meter: Meter) -> str:
        self._environment.meter = meter
        try:
            pieces = []
            for piece in self._template.generate(values):
                meter.charge(len(piece))
                pieces.append(piece)
            return "".join(pieces)
        except _Refusal as refusal:
            raise TemplateError(f"the chat template refuses these messages: {refusal}") from None
        except LimitError as error:
            raise TemplateError(f"the chat template was stopped{_line(error)}: {error.message}") from None
        except RecursionError as error:
            raise TemplateError(f"the chat template was stopped{_line(error)}: its macros call each other without end") from None
        except _FAILURES as error:
            raise TemplateError(f"the chat template fails on these messages{_line(error)}: {error}") from None


class _Refusal(jinja2.TemplateError):
    """The template called raise_exception."""


def _raise_exception(message: object) -> None:
    raise _Refusal(str(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 100 or re.search(r"%[^a-zA-Z%]*\d", pattern):
        raise LimitError("strftime_now takes at most 100 characters, and no widths")
    return datetime.now().strftime(pattern)


def _line(error: BaseException) -> str:
    """Where in the template the error arose."""
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return f" at line {lines[-1]}" if lines else ""


def _list_of_objects(values: object, name: str) -> Sequence[Mapping[str, Any]]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise InvalidRequestError(f"{name} must be a list of objects, not {type(values).__name__}")
    for place, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise InvalidRequestError(f"{name}[{place}] must be an object, not {type(value).__name__}")
    return values


def _message(message: Mapping[str, Any], place: int) -> dict[str, Any]:
    """The message as templates expect it: content a text, arguments of tool calls an object."""
    if not isinstance(message.get("role"), str):
        raise InvalidRequestError(f"messages[{place}] must have a role, a text such as 'user'")
    if "content" not in message and "tool_calls" not in message:
        raise InvalidRequestError(f"messages[{place}] must have a content: a text, null, or a list of parts")
    normal = {**message, "content": _content(message.get("content"), place)}
    if message.get("tool_calls"):
        calls = _list_of_objects(message["tool_calls"], f"messages[{place}].tool_calls")
        normal["tool_calls"] = [_tool_call(call) for call in calls]
    return normal


def _content(content: object, place: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in _list_of_objects(content, f"messages[{place}].content"):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequestError(f"messages[{place}].content holds a part of type {part.get('type')!r:.60}; edgelm takes text only")
        texts.append(part["text"])
    return "".join(texts)


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        # A model may have written no JSON; then its text is shown as it is.
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments if isinstance(arguments, dict) else function["arguments"]}}


def _input_size(value: object, name: str, known: dict[int, int], depth: int) -> int:
    """Characters and objects of a value, which must be of JSON's types; notes those of each container under its id().

    Raises:
        InvalidRequestError: other types, or too deeply nested.
    """
    if isinstance(value, str):
        return 1 + len(value)
    if value is None or isinstance(value, bool | int | float):
        return 1
    if depth > _MAX_DEPTH:
        raise InvalidRequestError(f"{name} is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise InvalidRequestError(f"{name} has a key that is no text")
        parts: list[object] = [*value, *value.values()]
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        raise InvalidRequestError(f"{name} holds a value of type {type(value).__name__}; give texts, numbers, lists and dicts")
    known[id(value)] = 1 + sum(_input_size(part, name, known, depth + 1) for part in parts)
    return known[id(value)]
