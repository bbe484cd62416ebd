"""A cloud on loopback: a real HTTP server that keeps every byte it is sent, and answers well, or in every way that a cloud can fail."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

Send = Callable[[bytes], None]
Behaviour = Callable[[Send, threading.Event], None]
"""Writes an answer; the event is set when the server ends."""

USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}


class CloudServer:
    """Serves one request a connection, in threads, from enter to exit.

    Args:
        behaviours: of the first, second, ... request; the last one of all that follow.

    Attributes:
        received: the bytes of each connection, head and body.
    """

    def __init__(self, *behaviours: Behaviour) -> None:
        self._behaviours = behaviours or (answers("from the cloud"),)
        self.received: list[bytes] = []
        self.n_connections = 0
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(whole.partition(b"\r\n\r\n")[2]) for whole in self.received]

    @property
    def wire(self) -> bytes:
        """Everything that came."""
        return b"\n".join(self.received)

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.n_connections += 1
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            whole = _request(connection)
            with self._lock:
                behaviour = self._behaviours[min(len(self.received), len(self._behaviours) - 1)]
                self.received.append(whole)
            if whole:
                behaviour(connection.sendall, self._over)


def _request(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
        head, found, body = data.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if found and (not lengths or len(body) >= int(lengths[0].partition(b":")[2])):
            break
    return data


def head(status: str = "200 OK", kind: str = "text/event-stream", **headers: str) -> bytes:
    """Of an answer that ends with its connection."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n{more}\r\n".encode()


def event(delta: Mapping[str, Any] | None = None, reason: str | None = None, **more: Any) -> bytes:
    """One chunk of a stream."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": choices, **more}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def answers(text: str, pieces: Sequence[str] | None = None, usage: Mapping[str, int] | None = USAGE, gap_s: float = 0.0) -> Behaviour:
    """A good answer, in these pieces."""

    def behave(send: Send, over: threading.Event) -> None:
        send(head())
        send(event({"role": "assistant", "content": ""}))
        for piece in pieces if pieces is not None else [text]:
            send(event({"content": piece}))
            if gap_s:
                over.wait(gap_s)
        send(event({}, "stop"))
        if usage is not None:
            send(event(None, usage=usage))
        send(DONE)

    return behave


def calls(name: str, pieces: Sequence[str]) -> Behaviour:
    """A call of a function, whose arguments come in these pieces."""

    def behave(send: Send, over: threading.Event) -> None:  # noqa: ARG001
        send(head())
        send(event({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}}]}))
        for piece in pieces:
            send(event({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}))
        send(event({}, "tool_calls") + event(None, usage=USAGE) + DONE)

    return behave


REPEATS = {"message": "bad key sk-secret", "code": "sk-secret", "type": "secret", "param": "secret"}


def status(line: str, error: Mapping[str, Any] = REPEATS, **headers: str) -> Behaviour:
    """A refusal, whose body repeats a key, as careless servers do."""
    return lambda send, _: send(head(line, "application/json", **headers) + json.dumps({"error": error}).encode())


def hangs(n_pieces: int = 0) -> Behaviour:
    """Nothing more comes after some text."""

    def behave(send: Send, over: threading.Event) -> None:
        if n_pieces:
            send(head() + b"".join(event({"content": f"piece {i} "}) for i in range(n_pieces)))
        over.wait(60)

    return behave


def cut_off(n_pieces: int = 2) -> Behaviour:
    """The stream ends within an event."""
    return lambda send, _: send(
        head() + b"".join(event({"content": f"piece {i} "}) for i in range(n_pieces)) + event({"content": "never whole"})[:-20]
    )


def says(kind: str, body: bytes, **headers: str) -> Behaviour:
    """Something else than an answer."""
    return lambda send, _: send(head(kind=kind, **headers) + body)


def drips(gap_s: float = 0.05) -> Behaviour:
    """An answer without an end, slowly."""

    def behave(send: Send, over: threading.Event) -> None:
        send(head())
        while not over.wait(gap_s):
            send(event({"content": "x"}))

    return behave


def huge(n_bytes: int) -> Behaviour:
    """More than anybody wants to read."""

    def behave(send: Send, over: threading.Event) -> None:
        send(head())
        piece = event({"content": "x" * 60_000})
        for _ in range(n_bytes // len(piece) + 1):
            send(piece)
            if over.is_set():
                return

    return behave


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield int(unused.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Until it is so."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it did not come to be so")
        time.sleep(0.005)
