"""Devices to measure with, for tests: trees of /sys, programs in PATH, and plugs that listen on the loopback address."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from edgelm.bench.power.kasa import decrypt, encrypt


def write_tree(root: Path, files: Mapping[str, object]) -> Path:
    """Files of one value each, by their path below the root."""
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def write_program(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of this name, in front of all others in PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return path


class Plug:
    """What a plug answers over HTTP: by path and query, an object, or (status, bytes), or bytes as they are.

    Attributes:
        stalls: it accepts requests and never answers, until it is closed.
        drips: it sends one byte after another for ever.
        hangs_up: it closes connections without an answer.
    """

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = dict(answers)
        self.stalls = self.drips = self.hangs_up = False
        self.closing = threading.Event()
        self.address = ""


@contextmanager
def http_plug(answers: Mapping[str, Any]) -> Iterator[Plug]:
    """A plug that listens on 127.0.0.1; its address is host:port."""
    plug = Plug(answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if plug.stalls:
                plug.closing.wait(30)
            if plug.stalls or plug.hangs_up:
                self.close_connection = True
                return
            if plug.drips:
                self._drip()
                return
            answer = plug.answers.get(unquote(self.path), (404, b"not found"))
            status, body = (
                answer if isinstance(answer, tuple) else (200, answer if isinstance(answer, bytes) else json.dumps(answer).encode())
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _drip(self) -> None:
            self.close_connection = True
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while not plug.closing.wait(0.02):
                    self.wfile.write(b" ")

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    plug.address = f"127.0.0.1:{server.server_address[1]}"
    try:
        yield plug
    finally:
        plug.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def kasa_plug(answer: Callable[[dict[str, Any]], Any]) -> Iterator[str]:
    """A plug of the older Kasa protocol on 127.0.0.1; gives host:port.

    `answer` takes a request and returns the answer's object, bytes to send as they are, or None to say nothing until the end.
    """
    closing = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.02)

    def serve() -> None:
        while not closing.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection, suppress(OSError):
                connection.settimeout(5)
                (length,) = struct.unpack(">I", connection.recv(4))
                request = b""
                while len(request) < length:
                    request += connection.recv(length - len(request))
                reply = answer(json.loads(decrypt(request)))
                if reply is None:
                    closing.wait(30)
                elif isinstance(reply, bytes):
                    connection.sendall(reply)
                else:
                    body = encrypt(json.dumps(reply).encode())
                    connection.sendall(struct.pack(">I", len(body)) + body)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        closing.set()
        thread.join()
        listener.close()


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
