"""A conversation as an OpenAI-compatible endpoint takes it, or the reason why it cannot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgelm.runtime.chat_model import ChatRequest, Message
from edgelm.runtime.sampling import SamplingParams

Json = dict[str, Any]
FIELDS = frozenset(
    {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop"}
    | {"presence_penalty", "frequency_penalty", "response_format", "tools", "tool_choice", "parallel_tool_calls"}
)
"""That a request may have."""


def not_for_cloud(request: ChatRequest) -> str | None:
    """What of a request only this device can do; None where an endpoint can answer it. Nothing of it is left out silently."""
    params = request.params
    reasons = {
        "more than one answer": request.n > 1,
        "log probabilities": params.logprobs is not None,
        "a bias of this model's tokens": bool(params.logit_bias),
        "an answer that may not end": params.ignore_eos,
        "a form other than a JSON schema": params.form is not None and params.form.kind != "json_schema",
    }
    wanted = [reason for reason, is_so in reasons.items() if is_so]
    return f"the request wants {' and '.join(wanted)}" if wanted else None


def body_of(request: ChatRequest, model: str, most_tokens: int, left_out: Sequence[str] = ()) -> bytes:
    """The bytes of the request.

    Sampling filters that endpoints do not know (top-k, min-p, the repeat penalty) are left to them.

    Args:
        most_tokens: of the answer; the request's own limit, where it is lower.
        left_out: fields that this endpoint refuses, or other names for them, as "max_tokens=max_completion_tokens".
    """
    params = request.params
    body: Json = {
        "model": model,
        "messages": _messages(request.messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": answer_tokens(params, most_tokens),
        "temperature": params.temperature,
    }
    if params.top_p != SamplingParams.top_p:
        body["top_p"] = params.top_p
    for name, value in (("presence_penalty", params.presence_penalty), ("frequency_penalty", params.frequency_penalty)):
        if value:
            body[name] = value
    if params.seed is not None:
        body["seed"] = params.seed
    if params.stop_strings:
        body["stop"] = list(params.stop_strings)
    if params.form is not None:
        body["response_format"] = _response_format(params.form.text)
    if request.tools is not None:
        body["tools"] = [tool.described() for tool in request.tools.tools]
        body["tool_choice"] = "required" if request.tools.must else "auto"
        if not request.tools.several:
            body["parallel_tool_calls"] = False
    for each in left_out:
        name, _, other = each.partition("=")
        value = body.pop(name, None)
        if other and value is not None:
            body[other] = value
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8, but JSON can write it
        return json.dumps(body, separators=(",", ":")).encode()


def answer_tokens(params: SamplingParams, most_tokens: int) -> int:
    """Tokens of an answer at most."""
    return most_tokens if params.max_tokens is None else min(params.max_tokens, most_tokens)


def _response_format(schema: str) -> Json:
    content = json.loads(schema)
    if content == {"type": "object"}:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": content}}


def _messages(messages: Sequence[Message]) -> list[Json]:
    """With the names of calls that templates do without: the tools' messages after an assistant's answer its calls in their order."""
    out: list[Json] = []
    open_calls: list[str] = []
    for i, message in enumerate(messages):
        one: Json = {"role": message["role"], "content": message.get("content") or ""}
        if message.get("name") and message["role"] != "tool":
            one["name"] = message["name"]
        if message["role"] == "tool":
            one["tool_call_id"] = open_calls.pop(0) if open_calls else f"call_{i}"
        calls = message.get("tool_calls") or ()
        if calls:
            open_calls = [f"call_{i}_{j}" for j in range(len(calls))]
            one["tool_calls"] = [_call(name, call["function"]) for name, call in zip(open_calls, calls, strict=True)]
        out.append(one)
    return out


def _call(name: str, function: Mapping[str, Any]) -> Json:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": name, "type": "function", "function": {"name": function["name"], "arguments": text}}
