"""POST /v1/chat/completions: a conversation in, an answer out, whole or as chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from edgelm.runtime.chat_model import ChatRequest, Event, Events, Finish, RouteDecision, TextDelta, ToolCallDelta, Usage
from edgelm.runtime.model_pool import ModelPool
from edgelm.runtime.results import TokenLogprob
from edgelm.runtime.server.answering import Envelope, Json, asker, begin, route_of, usage_of
from edgelm.runtime.server.chat_schema import ChatCompletionRequest, NamedTool
from edgelm.runtime.server.errors import RefusedError
from edgelm.runtime.server.event_stream import EventStream, whole
from edgelm.runtime.server.metrics import Metrics
from edgelm.runtime.tool_calls import CallPiece, Tool, ToolUse, choose_tools


def chat_routes(pool: ModelPool, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", summary="Answer a conversation")
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        wanted, who = chat_request(body), asker(request, body.user, body.timeout, body.stream, takes_restarts=True)
        name, events = await begin(request, pool, metrics, body.model, lambda use: use.front.chat(wanted, who))
        envelope = Envelope("chatcmpl", name)
        if body.stream:
            return EventStream(events, chat_chunks(events, envelope, body.n, body.wants_usage))
        return await whole(request, events, chat_completion(events, envelope, body.n))

    return router


def chat_request(body: ChatCompletionRequest) -> ChatRequest:
    """What is asked of the model.

    Raises:
        RefusedError: fields that contradict each other.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise RefusedError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise RefusedError(400, "max_tokens and max_completion_tokens differ; give one of them", param="max_tokens")
    form = None if body.response_format is None else body.response_format.form()
    params = body.sampling_params(body.max_completion_tokens or body.max_tokens, (body.top_logprobs or 0) if body.logprobs else None, form)
    return ChatRequest([message.for_template() for message in body.messages], params, body.n, _tool_use(body))


def _tool_use(body: ChatCompletionRequest) -> ToolUse | None:
    tools = [Tool(each.function.name, each.function.description, each.function.parameters) for each in body.tools or ()]
    named = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None
    return choose_tools(tools, body.tool_choice if isinstance(body.tool_choice, str) else "auto", body.parallel_tool_calls, named)


async def chat_chunks(events: Events, envelope: Envelope, n: int, wants_usage: bool) -> AsyncIterator[Json]:
    """The events as chat.completion.chunk objects: each choice's role first, its finish_reason last, then the usage if it is wanted."""
    usage: Json = {"usage": None} if wants_usage else {}

    def chunk(choice: int, delta: Json, logprobs: Json | None = None, reason: str | None = None, **more: Any) -> Json:
        one = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return envelope.around("chat.completion.chunk", [one], **usage, **more)

    for choice in range(n):
        yield chunk(choice, {"role": "assistant", "content": ""})
    async for event in events:
        match event:
            case RouteDecision():
                yield chunk(0, {}, edgelm=route_of(event))
            case ToolCallDelta():
                yield chunk(event.choice, {"tool_calls": [_call_delta(event.piece)]})
            case TextDelta():
                yield chunk(event.choice, {"content": event.text}, _logprobs(event.logprobs))
            case Finish():
                yield chunk(event.choice, {}, None, event.reason)
            case Usage() if wants_usage:
                yield envelope.around("chat.completion.chunk", [], usage=usage_of(event))


async def chat_completion(events: Events, envelope: Envelope, n: int) -> Json:
    """The whole answer as a chat.completion object."""
    everything: list[Event] = [event async for event in events]
    choices = [_choice(everything, choice) for choice in range(n)]
    (usage,) = (event for event in everything if isinstance(event, Usage))
    told = [event for event in everything if isinstance(event, RouteDecision)]
    return envelope.around("chat.completion", choices, usage=usage_of(usage), **({"edgelm": route_of(told[-1])} if told else {}))


def _choice(events: Sequence[Event], choice: int) -> Json:
    deltas = [event for event in events if isinstance(event, TextDelta) and event.choice == choice]
    (reason,) = (event.reason for event in events if isinstance(event, Finish) and event.choice == choice)
    told = tuple(one for delta in deltas for one in delta.logprobs or ())
    logprobs = _logprobs(told) if any(delta.logprobs is not None for delta in deltas) else None
    calls: list[Json] = []
    for event in events:
        if isinstance(event, ToolCallDelta) and event.choice == choice:
            if event.piece.id is not None:
                calls.append({"id": event.piece.id, "type": "function", "function": {"name": event.piece.name, "arguments": ""}})
            calls[-1]["function"]["arguments"] += event.piece.arguments
    text = "".join(delta.text for delta in deltas)
    message: Json = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    return {"index": choice, "message": message, "logprobs": logprobs, "finish_reason": reason}


def _call_delta(piece: CallPiece) -> Json:
    function = {"arguments": piece.arguments}
    if piece.id is None:
        return {"index": piece.index, "function": function}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": {"name": piece.name, **function}}


def _logprobs(told: Sequence[TokenLogprob] | None) -> Json | None:
    if told is None:
        return None

    def shown(one: Any) -> Json:
        return {"token": one.token, "logprob": one.logprob, "bytes": list(one.token.encode())}

    return {"content": [shown(one) | {"top_logprobs": [shown(top) for top in one.top]} for one in told], "refusal": None}
