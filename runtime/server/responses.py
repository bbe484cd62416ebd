"""POST /v1/responses: OpenAI's newer protocol over the same models. Nothing is stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response

from edgelm.runtime.chat_model import Accepted, ChatRequest, Event, Events, Finish, RouteDecision, TextDelta, ToolCallDelta, Usage
from edgelm.runtime.model_pool import ModelPool
from edgelm.runtime.sampling import SamplingParams
from edgelm.runtime.server.answering import Json, asker, begin, route_of
from edgelm.runtime.server.event_stream import EventStream, whole
from edgelm.runtime.server.metrics import Metrics
from edgelm.runtime.server.responses_schema import FunctionChoice, ResponseRequest
from edgelm.runtime.tool_calls import Tool, ToolUse, choose_tools


def response_routes(pool: ModelPool, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/responses", summary="Answer a conversation, by OpenAI's newer protocol")
    async def responses(body: ResponseRequest, request: Request) -> Response:
        wanted = ChatRequest(body.for_template(), _params(body), tools=_tool_use(body))
        who = asker(request, body.user, body.timeout, body.stream)
        name, events = await begin(request, pool, metrics, body.model, lambda use: use.front.chat(wanted, who))
        answer = _Answer(body, name)
        if body.stream:
            return EventStream(events, answer.stream(events), is_named=True)
        return await whole(request, events, answer.whole(events))

    return router


def _params(body: ResponseRequest) -> SamplingParams:
    given: dict[str, Any] = {name: getattr(body, name) for name in ("temperature", "top_p") if getattr(body, name) is not None}
    form = body.text.format.form() if body.text is not None and body.text.format is not None else None
    return SamplingParams(**given, max_tokens=body.max_output_tokens, form=form)


def _tool_use(body: ResponseRequest) -> ToolUse | None:
    tools = [Tool(each.name, each.description or "", each.parameters or Tool(each.name).parameters) for each in body.tools or ()]
    named = body.tool_choice.name if isinstance(body.tool_choice, FunctionChoice) else None
    return choose_tools(tools, body.tool_choice if isinstance(body.tool_choice, str) else "auto", body.parallel_tool_calls, named)


class _Answer:
    """A response object that grows, and the events that tell how."""

    def __init__(self, body: ResponseRequest, model: str) -> None:
        choice = body.tool_choice or "auto"
        form = body.text.format if body.text is not None else None
        self._response: Json = {
            "id": _new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form is not None else {"type": "text"}},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
        }
        self._n_events = 0

    async def whole(self, events: Events) -> Json:
        async for event in events:
            for _ in self._take(event):
                pass
        return self._response

    async def stream(self, events: Events) -> AsyncIterator[Json]:
        async for event in events:
            for told in self._take(event):
                yield {**told, "sequence_number": self._n_events}
                self._n_events += 1

    def _take(self, event: Event) -> list[Json]:
        """Let the response grow by an event; what is told of it."""
        match event:
            case Accepted():
                return [self._about("response.created"), self._about("response.in_progress")]
            case TextDelta() if event.text:
                told = self._open("message", {"id": _new_id("msg"), "role": "assistant", "content": []})
                if not self._item["content"]:
                    self._item["content"].append({"type": "output_text", "text": "", "annotations": []})
                    told.append(self._of_part("response.content_part.added", part=dict(self._item["content"][0])))
                self._item["content"][0]["text"] += event.text
                return [*told, self._of_part("response.output_text.delta", delta=event.text, logprobs=[])]
            case ToolCallDelta():
                piece, told = event.piece, []
                if piece.id is not None:
                    told = self._close()
                    call = {"id": _new_id("fc"), "call_id": piece.id, "name": piece.name, "arguments": ""}
                    told += self._open("function_call", call)
                self._item["arguments"] += piece.arguments
                return [*told, self._of_item("response.function_call_arguments.delta", delta=piece.arguments)]
            case RouteDecision():
                self._response["edgelm"] = route_of(event)
            case Finish():
                is_whole = event.reason != "length"
                self._response["status"] = "completed" if is_whole else "incomplete"
                self._response["incomplete_details"] = None if is_whole else {"reason": "max_output_tokens"}
                return self._close()
            case Usage():
                self._response["usage"] = {
                    "input_tokens": event.n_prompt,
                    "input_tokens_details": {"cached_tokens": event.n_cached},
                    "output_tokens": event.n_generated,
                    "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": event.n_prompt + event.n_generated,
                }
                return [self._about(f"response.{self._response['status']}")]
        return []

    @property
    def _item(self) -> Json:
        item: Json = self._response["output"][-1]
        return item

    def _open(self, kind: str, fields: Json) -> list[Json]:
        """Begin an item, unless one of this kind is growing."""
        output = self._response["output"]
        if output and output[-1]["type"] == kind and output[-1]["status"] == "in_progress":
            return []
        told = self._close()
        output.append({"type": kind, "status": "in_progress", **fields})
        return [*told, {"type": "response.output_item.added", "output_index": len(output) - 1, "item": dict(output[-1])}]

    def _close(self) -> list[Json]:
        """End the item that is growing, if there is one."""
        output = self._response["output"]
        if not output or output[-1]["status"] != "in_progress":
            return []
        item, told = output[-1], []
        if item["type"] == "message":
            part = item["content"][0]
            told.append(self._of_part("response.output_text.done", text=part["text"], logprobs=[]))
            told.append(self._of_part("response.content_part.done", part=part))
        else:
            told.append(self._of_item("response.function_call_arguments.done", arguments=item["arguments"], name=item["name"]))
        item["status"] = "incomplete" if self._response["status"] == "incomplete" else "completed"
        return [*told, {"type": "response.output_item.done", "output_index": len(output) - 1, "item": dict(item)}]

    def _about(self, kind: str) -> Json:
        return {"type": kind, "response": {**self._response, "output": list(self._response["output"])}}

    def _of_item(self, kind: str, **fields: Any) -> Json:
        return {"type": kind, "item_id": self._item["id"], "output_index": len(self._response["output"]) - 1, **fields}

    def _of_part(self, kind: str, **fields: Any) -> Json:
        return self._of_item(kind, content_index=0, **fields)


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
