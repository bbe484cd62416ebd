"""Clients that hold their connections and do nothing with them, on real sockets."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from byte_model import says
from numpy.typing import NDArray
from served import MakeServed, Served

from edgelm.runtime.server.connection import Connection

BODY = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()


def head(body: bytes) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


HEAD = head(BODY)


class Impatient(Connection):
    headers_s = 0.3
    body_s = 0.4
    write_s = 0.3
    most = 10


@pytest.fixture
def served(make_served: MakeServed) -> Served:
    return make_served(says("x"), connection=Impatient)


@contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        yield client


def heard(client: socket.socket) -> bytes:
    """Everything until the server hangs up."""
    told = b""
    with suppress(ConnectionResetError):
        while piece := client.recv(65536):
            told += piece
    return told


def test_one_that_says_nothing_is_hung_up_on(served: Served) -> None:
    with connected(served) as client:
        assert heard(client) == b""
    assert served.chat().status_code == 200


@pytest.mark.parametrize("before", [b"", HEAD + BODY], ids=["first", "after a request"])
def test_headers_that_come_a_byte_at_a_time_do_not_hold_it(served: Served, before: bytes) -> None:
    with connected(served) as client:
        client.sendall(before)
        begin = time.monotonic()
        with suppress(OSError):
            for byte in HEAD * 10:
                client.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - begin < 5
    assert served.chat().status_code == 200


def test_a_body_that_does_not_come_is_told_so(served: Served) -> None:
    with connected(served) as client:
        client.sendall(HEAD + BODY[:-5])
        answer = heard(client)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"longer than 0.4 s" in json.dumps(json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])).encode()
    assert served.chat().status_code == 200


def test_slow_but_steady_is_fine(served: Served) -> None:
    with connected(served) as client:
        client.sendall(HEAD[:30])
        time.sleep(0.2)
        client.sendall(HEAD[30:] + BODY[:-5])
        time.sleep(0.2)
        client.sendall(BODY[-5:])
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_one_connection_takes_many_requests_and_is_closed_when_idle(served: Served) -> None:
    with connected(served) as client:
        told = b""
        for _ in range(3):
            client.sendall(HEAD + BODY)
            told += client.recv(65536)
            time.sleep(0.1)
        assert (told + heard(client)).count(b"HTTP/1.1 200 ") == 3


def for_ever(_: object) -> NDArray[np.float32]:
    logits = np.zeros(258, np.float32)
    logits[ord("a")] = 20
    return logits


def test_one_that_does_not_read_loses_its_place(make_served: MakeServed) -> None:
    served = make_served(for_ever, connection=Impatient, n_ctx=1_000_000)
    told = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "logprobs": True, "top_logprobs": 20}
    body = json.dumps(told).encode()
    assert served.chat(max_tokens=1).status_code == 200  # the model is loaded now
    with connected(served) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(head(body) + body)
        end = time.monotonic() + 30
        while not served.model.scheduler.n_active:
            assert time.monotonic() < end
            time.sleep(0.01)
        while served.model.scheduler.n_active:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_flood_of_connections_is_bounded_and_passes(served: Served) -> None:
    flood = [socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(60)]
    hung_up = 0
    for client in flood[Impatient.most :]:
        client.settimeout(0.1)
        with suppress(TimeoutError):
            hung_up += heard(client) == b""
    for client in flood:
        client.close()
    assert hung_up >= 60 - Impatient.most - 1
    time.sleep(0.1)
    assert served.chat().status_code == 200
