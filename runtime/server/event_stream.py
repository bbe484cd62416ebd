"""Answers over HTTP: as server-sent events or whole, and given up when nobody is there to take them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgelm.errors import EdgeLMError
from edgelm.runtime.chat_model import Events
from edgelm.runtime.server.errors import refusal_of

KEEP_ALIVE_S = 15.0

Chunks = AsyncIterator[Mapping[str, Any]]
T = TypeVar("T")


def as_json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class EventStream(Response):
    """Each chunk as an event, then [DONE]. An error on the way is an event too, and the last one.

    Args:
        events: closed at the end, and when the client has gone.
        chunks: what is made of them.
        is_named: events have the names that their chunks have under "type", and nothing is said after the last.
        keep_alive_s: a comment is sent where nothing was for so long, so that nobody on the way takes the connection for dead.
    """

    media_type = "text/event-stream"

    def __init__(self, events: Events, chunks: Chunks, is_named: bool = False, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._chunks = chunks
        self._is_named = is_named
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            await unless_gone(receive, self._send_all(send))
        finally:
            self._events.close()

    async def _send_all(self, send: Send) -> None:
        await self._events.decided()  # the head tells who answers
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        loop = asyncio.get_running_loop()
        last = loop.time()

        async def write(data: bytes, more: bool = True) -> None:
            nonlocal last
            last = loop.time()
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async def keep_alive() -> None:
            while True:
                await asyncio.sleep(last + self._keep_alive_s - loop.time())
                if loop.time() >= last + self._keep_alive_s:
                    await write(b": keep-alive\n\n")

        keeping = asyncio.ensure_future(keep_alive())  # beside the chunks: a timer for each of them would cost more than its text
        last_words = b"" if self._is_named else b"data: [DONE]\n\n"
        try:
            async for chunk in self._chunks:
                await write(self._written(chunk))
        except EdgeLMError as error:
            body = refusal_of(error).body()
            if self._is_named:  # Anthropic's clients read the object, OpenAI's the fields
                body = {**body["error"], **body, "type": "error"}
            last_words = self._written(body)
        finally:
            keeping.cancel()
        await write(last_words, more=False)

    def _written(self, chunk: Mapping[str, Any]) -> bytes:
        name = f"event: {chunk['type']}\n".encode() if self._is_named else b""
        return name + b"data: " + as_json(chunk) + b"\n\n"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The work's result; cancelled, and None, when the client closes the connection before."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def whole(request: Request, events: Events, work: Coroutine[Any, Any, Mapping[str, Any]]) -> Response:
    """The JSON that is made of the events, which are closed at the end, and when the client has gone."""
    try:
        result = await unless_gone(request.receive, work)
    finally:
        events.close()
    if result is None:
        return Response(status_code=499)  # nginx's number for a client that has gone; nobody reads it
    return Response(as_json(result), media_type="application/json")
