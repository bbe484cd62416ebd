"""A name for each request, and a line about it in the log. What was asked and answered is logged only if the owner wants it."""

from __future__ import annotations

import json
import logging
import time
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgelm.runtime.chat_model import RouteDecision, Usage

LOG = logging.getLogger("edgelm.server")


@dataclass
class Record:
    """What the log tells of a request.

    Attributes:
        model: that answered it.
        usage: of the answer.
        decision: who answers, where there was a choice; the last one that is known.
    """

    id: str = field(default_factory=lambda: f"req_{uuid.uuid4().hex}")
    model: str | None = None
    usage: Usage | None = None
    decision: RouteDecision | None = None


class RequestLog:
    """The outermost part of the application.

    Args:
        logs_text: log the bytes of requests and answers, too.
    """

    def __init__(self, app: ASGIApp, logs_text: bool = False) -> None:
        self._app = app
        self._logs_text = logs_text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = scope.setdefault("state", {})["record"] = Record()
        begin = time.perf_counter()
        status, is_whole = 0, False
        asked, answered = bytearray(), bytearray()

        async def heard() -> Message:
            message = await receive()
            if self._logs_text:
                asked.extend(message.get("body", b""))
            return message

        async def named(message: Message) -> None:
            nonlocal status, is_whole
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = headers["request-id"] = record.id  # OpenAI's name of it, and Anthropic's
                if record.decision is not None:
                    headers["x-edgelm-route"] = record.decision.route
                    headers["x-edgelm-confidence"] = _shown(record.decision.confidence)
            else:
                is_whole = not message.get("more_body", False)
                if self._logs_text:
                    answered.extend(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, heard, named)
        finally:
            told = [record.id, (scope.get("client") or ("?",))[0], scope["method"], json.dumps(scope["path"]).strip('"')]
            told += [str(status) if is_whole else f"{status} left", f"{time.perf_counter() - begin:.3f}s", *_answer(record)]
            LOG.info(" ".join(told))
            if self._logs_text:
                LOG.info("%s asked %s", record.id, json.dumps(asked.decode(errors="replace"), ensure_ascii=False))
                LOG.info("%s answered %s", record.id, json.dumps(answered.decode(errors="replace"), ensure_ascii=False))


def _answer(record: Record) -> list[str]:
    usage, decision = record.usage, record.decision
    told = [] if record.model is None else [f"model={record.model}"]
    if usage is not None:
        told.append(f"prompt={usage.n_prompt} cached={usage.n_cached} generated={usage.n_generated}")
    if decision is not None:
        told.append(f"route={decision.route} reason={decision.reason.replace(' ', '-')} confidence={_shown(decision.confidence)}")
    return told


def _shown(confidence: float | None) -> str:
    return "unknown" if confidence is None else f"{confidence:.3f}"
