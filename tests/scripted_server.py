"""A real HTTP server on loopback that answers as its script says: on schedule, late, in one piece, broken in every way a server can be.

The model's name in a request is its script: "good", or several answers in turn such as "good,http_500".
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

N_TOKENS = 8
FIRST_S = 0.02
GAP_S = 0.005
LATE_S = 1.5


class ScriptedServer:
    """Serves in a thread from enter to exit.

    Attributes:
        bodies, headers: of every request for an answer, in order.
        writes_s: `time.perf_counter` just before each piece of text was written, by request.
    """

    def __init__(self, one_at_a_time: bool = False, models: bytes = b'{"data": [{"id": "good"}]}') -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.writes_s: list[list[float]] = []
        self.models = models
        self._one_at_a_time = one_at_a_time
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._turn = asyncio.Semaphore(1 if self._one_at_a_time else 1000)
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        async with server:
            await self._over.wait()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went, or the test is over
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET"):
            writer.write(_plain(200, self.models))
            return True
        length = next(int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length"))
        body = json.loads(await reader.readexactly(length))
        script = body["model"].split(",")
        name = script[len(self.bodies) % len(script)]
        self.bodies.append(body)
        self.headers.append(head)
        self.writes_s.append([])
        async with self._turn:
            return await _Answer(body, writer, self.writes_s[-1]).give(name)


class _Answer:
    def __init__(self, body: dict[str, Any], writer: asyncio.StreamWriter, writes_s: list[float]) -> None:
        self.body, self.writer, self.writes_s = body, writer, writes_s
        self.is_chat = "messages" in body

    async def give(self, name: str) -> bool:
        """Answer; whether the connection goes on."""
        if name.startswith("http_"):
            self.writer.write(_plain(int(name[5:]), b'{"error": "no, and the key was sk-secret"}'))
            return True
        if name == "no_usage_known" and "stream_options" in self.body:
            self.writer.write(_plain(400, b'{"error": "stream_options is not known"}'))
            return True
        if name == "json":
            self.writer.write(_plain(200, b'{"choices": [{"message": {"content": "all of it"}}]}'))
            return True
        if name == "hang_up":
            return False
        if name == "silent":
            await asyncio.sleep(60)
        self.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            async for data in _PIECES.get(name, _good)(self):
                self.send(data)
                await self.writer.drain()
        except _CutError:
            await asyncio.sleep(0.05)
            self.writer.transport.abort()
            return False
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()
        return True

    def send(self, data: bytes) -> None:
        if b'"content": "w' in data or b'"text": "w' in data:
            self.writes_s.append(time.perf_counter())
        self.writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def text(self, text: str, finish: str | None = None) -> bytes:
        choice: dict[str, Any] = {"delta": {"content": text}} if self.is_chat else {"text": text}
        return event({"choices": [choice | {"finish_reason": finish}]})

    def end(self, n_generated: int = N_TOKENS) -> bytes:
        usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": n_generated}}
        return self.text("", "length") + (event(usage) if "stream_options" in self.body else b"") + b"data: [DONE]\n\n"


class _CutError(Exception):
    """The connection breaks here."""


def event(fields: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n".encode()


def _plain(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _good(answer: _Answer, first_s: float = FIRST_S) -> AsyncIterator[bytes]:
    if answer.is_chat:
        yield event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    await asyncio.sleep(first_s)
    for i in range(N_TOKENS):
        yield answer.text(f"w{i}")
        await asyncio.sleep(GAP_S)
    yield answer.end()


async def _late(answer: _Answer) -> AsyncIterator[bytes]:
    async for data in _good(answer, LATE_S):
        yield data


async def _one_piece(answer: _Answer) -> AsyncIterator[bytes]:
    yield b"".join(answer.text(f"w{i}") for i in range(N_TOKENS)) + answer.end()


async def _odd(answer: _Answer) -> AsyncIterator[bytes]:
    """Sound, but unusual: comments, CRLF, events cut anywhere, line separators within text, no [DONE]."""
    data = b": ping\r\n\r\n" + answer.text("w\u2028\x85") + answer.text("w") + answer.text("", "stop")
    data = data.replace(b"\n", b"\r\n")
    for i in range(0, len(data), 7):
        yield data[i : i + 7]


async def _stall(answer: _Answer) -> AsyncIterator[bytes]:
    yield answer.text("w")
    await asyncio.sleep(60)


async def _cut(answer: _Answer) -> AsyncIterator[bytes]:
    yield answer.text("w")
    raise _CutError


async def _cut_early(answer: _Answer) -> AsyncIterator[bytes]:
    yield answer.text("")
    raise _CutError


def _fixed(make: Callable[[_Answer], bytes]) -> Callable[[_Answer], AsyncIterator[bytes]]:
    async def give(answer: _Answer) -> AsyncIterator[bytes]:
        yield make(answer)

    return give


_PIECES: dict[str, Callable[[_Answer], AsyncIterator[bytes]]] = {
    "late": _late,
    "one_piece": _one_piece,
    "odd": _odd,
    "stall": _stall,
    "cut": _cut,
    "cut_early": _cut_early,
    "no_end": _fixed(lambda answer: answer.text("w")),
    "done_alone": _fixed(lambda answer: answer.text("w") + b"data: [DONE]\n\n"),
    "half_event": _fixed(lambda answer: answer.text("w") + b'data: {"choi'),
    "garbage": _fixed(lambda answer: answer.text("w") + b"data: {garbage\n\n"),
    "not_an_event": _fixed(lambda answer: answer.text("w") + b"data: [1, 2]\n\n"),
    "endless_line": _fixed(lambda _: b"data: " + b"x" * (2 << 20)),
    "empty": _fixed(lambda answer: answer.end(0)),
    "error_event": _fixed(lambda answer: answer.text("w") + event({"error": {"message": "out of memory"}})),
    "error_line": _fixed(lambda answer: answer.text("w") + b'error: {"message": "out of memory"}\n\n'),
    "abort": _fixed(lambda answer: answer.text("w", "abort")),
}
