"""POST /v1/messages: Anthropic's protocol over the same models."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response

from edgelm.runtime.chat_model import Accepted, ChatRequest, Events, Finish, RouteDecision, TextDelta, ToolCallDelta, Usage
from edgelm.runtime.model_pool import ModelPool
from edgelm.runtime.sampling import SamplingParams
from edgelm.runtime.server.answering import Json, asker, begin, route_of
from edgelm.runtime.server.event_stream import EventStream, whole
from edgelm.runtime.server.messages_schema import CountRequest, MessagesRequest
from edgelm.runtime.server.metrics import Metrics
from edgelm.runtime.tool_calls import Tool, ToolUse, choose_tools


def message_routes(pool: ModelPool, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/messages", summary="Answer a conversation, by Anthropic's protocol")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        wanted = ChatRequest(body.for_template(), _params(body), tools=_tool_use(body))
        who = asker(request, body.metadata.user_id if body.metadata else None, None, body.stream)
        name, events = await begin(request, pool, metrics, body.model, lambda use: use.front.chat(wanted, who))
        message = {"id": f"msg_{uuid.uuid4().hex[:24]}", "type": "message", "role": "assistant", "model": name}
        if body.stream:
            return EventStream(events, _events(events, message), is_named=True)
        return await whole(request, events, _message(events, message))

    @router.post("/v1/messages/count_tokens", summary="How many tokens a conversation has")
    async def count_tokens(body: CountRequest) -> Json:
        use = await pool.use(body.model)
        try:
            return {"input_tokens": await asyncio.to_thread(use.model.count_tokens, body.for_template(), _tool_use(body))}
        finally:
            use.release()

    return router


def _params(body: MessagesRequest) -> SamplingParams:
    names = ("temperature", "top_p", "top_k")
    given: dict[str, Any] = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
    return SamplingParams(**given, max_tokens=body.max_tokens, stop=body.stop_sequences or ())


_CHOICES = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}


def _tool_use(body: CountRequest) -> ToolUse | None:
    tools = [Tool(each.name, each.description, each.input_schema) for each in body.tools or ()]
    choice = body.tool_choice
    if choice is None:
        return choose_tools(tools, "auto", several=True)
    named = (choice.name or "") if choice.type == "tool" else None
    return choose_tools(tools, _CHOICES[choice.type], not choice.disable_parallel_tool_use, named)


def _stop(finish: Finish) -> Json:
    """Why an answer ended, in Anthropic's words."""
    reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
    reason = reasons.get(finish.reason, "end_turn" if finish.stop_string is None else "stop_sequence")
    return {"stop_reason": reason, "stop_sequence": finish.stop_string}


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.n_prompt - usage.n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.n_cached,
        "output_tokens": usage.n_generated,
    }


async def _message(events: Events, message: Json) -> Json:
    """The whole answer."""
    content: list[Json] = []
    async for event in events:
        match event:
            case TextDelta() if event.text:
                if not content or content[-1]["type"] != "text":
                    content.append({"type": "text", "text": ""})
                content[-1]["text"] += event.text
            case ToolCallDelta():
                if event.piece.id is not None:
                    content.append({"type": "tool_use", "id": event.piece.id, "name": event.piece.name, "input": ""})
                content[-1]["input"] += event.piece.arguments
            case RouteDecision():
                message = message | {"edgelm": route_of(event)}
            case Finish():
                message = message | _stop(event)
            case Usage():
                message = message | {"usage": _usage(event)}
    for block in content:
        if block["type"] == "tool_use":
            block["input"] = _arguments(block["input"])
    return {**message, "content": content}


def _arguments(text: str) -> Json:
    """Those of a call; one that max_tokens cut off has none."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


async def _events(events: Events, message: Json) -> AsyncIterator[Json]:
    """The answer as Anthropic's events: a block is opened, grows, and is closed before the next."""
    index, kind = -1, ""
    stop: Json = {}
    told: Json = {}
    async for event in events:
        match event:
            case Accepted():
                usage = {"input_tokens": event.n_prompt, "output_tokens": 0}
                start = {**message, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
                yield {"type": "message_start", "message": start}
            case TextDelta() if event.text:
                if kind != "text":
                    if kind:
                        yield {"type": "content_block_stop", "index": index}
                    index, kind = index + 1, "text"
                    yield {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}}
                yield {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": event.text}}
            case ToolCallDelta():
                if event.piece.id is not None:
                    if kind:
                        yield {"type": "content_block_stop", "index": index}
                    index, kind = index + 1, "tool_use"
                    block: Json = {"type": "tool_use", "id": event.piece.id, "name": event.piece.name, "input": {}}
                    yield {"type": "content_block_start", "index": index, "content_block": block}
                delta = {"type": "input_json_delta", "partial_json": event.piece.arguments}
                yield {"type": "content_block_delta", "index": index, "delta": delta}
            case RouteDecision():
                told = {"edgelm": route_of(event)}
            case Finish():
                stop = _stop(event)
            case Usage():
                if kind:
                    yield {"type": "content_block_stop", "index": index}
                yield {"type": "message_delta", "delta": stop, "usage": _usage(event), **told}
                yield {"type": "message_stop"}
