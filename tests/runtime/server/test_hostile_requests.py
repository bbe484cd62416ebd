"""Requests made to hurt: each is a clear error of the client's, soon, and does others no harm."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from byte_model import says
from served import Served

from edgelm.runtime.scheduler import Limits
from edgelm.runtime.server.access import Access

HI: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    server = Served(says("x"), Access(), Limits(n_active=4, n_waiting=8))
    yield server
    server.close()


def nested(depth: int, shape: str) -> str:
    opening, closing = {"lists": ("[", "]"), "objects": ('{"a":', "}"), "schemas": ('{"type":"array","items":', "}")}[shape]
    return opening * depth + ("{}" if shape != "lists" else "") + closing * depth


def chat(**fields: Any) -> bytes:
    return json.dumps({"messages": HI, **fields}).encode()


def schema(text: str) -> bytes:
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": "SCHEMA"}}).replace(
        b'"SCHEMA"', text.encode()
    )


def form(kind: str, text: str) -> bytes:
    return chat(response_format={"type": kind, "text": text})


BODIES = {
    "no JSON": b"{",
    "no object": b"[1, 2]",
    "no UTF-8": b'{"messages": "\xff"}',
    "a null byte": b"\0",
    "an empty body": b"",
    "no messages": chat(messages=[]),
    "an unknown role": chat(messages=[{"role": "emperor", "content": "hi"}]),
    "an empty message": chat(messages=[{}]),
    "content of no kind": chat(messages=[{"role": "user", "content": {"a": 1}}]),
    "half a surrogate pair": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "half a pair in a model's name": b'{"model": "\\ud800", "messages": [{"role": "user", "content": "hi"}]}',
    "half a pair in a field's name": b'{"\\ud800": 1, "messages": [{"role": "user", "content": "hi"}]}',
    "half a pair as a user": b'{"user": "\\ud800", "temperature": 9, "messages": [{"role": "user", "content": "hi"}]}',
    "half a pair in a schema": schema('{"enum": ["\\ud800"]}'),
    "a temperature that is no number": b'{"temperature": NaN, "messages": [{"role": "user", "content": "hi"}]}',
    "an infinite temperature": b'{"temperature": Infinity, "messages": [{"role": "user", "content": "hi"}]}',
    "a seed of many digits": chat(seed=1).replace(b"1", b"1" * 10_000),
    "an endless number": chat(max_tokens=1).replace(b"1", b"1e999"),
    "thousands of stop strings": chat(stop=[str(i) for i in range(5000)]),
    "a long stop string": chat(stop="x" * 10_000),
    "thousands of biases": chat(logit_bias={str(i): 1 for i in range(5000)}),
    "too many messages": chat(messages=HI * 5000),
    "too many tools": chat(tools=[{"type": "function", "function": {"name": f"f{i}"}} for i in range(1000)]),
    "lists in lists": nested(200_000, "lists").encode(),
    "objects in objects": nested(200_000, "objects").encode(),
    "a deep field": chat(metadata={"a": 1}).replace(b"1", nested(500, "objects").encode()),
    "a deep schema": schema(nested(5000, "schemas")),
    "a large schema": schema(json.dumps({"enum": [str(i) for i in range(50_000)]})),
    "a schema without sense": schema('{"type": "kangaroo"}'),
    "a schema that asks for itself only": schema('{"$ref": "#"}'),
    "a schema from elsewhere": schema('{"$ref": "http://example.invalid/schema"}'),
    "an endless expression": form("regex", "(?:" * 20_000 + "a" + ")*" * 20_000),
    "an expression left open": form("regex", "(a"),
    "a grammar of itself": form("lark", "start: start"),
    "a grammar without a rule": form("gbnf", "root ::= nothing"),
    "a prompt beyond the context": chat(messages=[{"role": "user", "content": "word " * 1_000_000}]),
    "ten megabytes": chat(messages=[{"role": "user", "content": "x" * 10_000_000}]),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_it_is_refused_and_others_are_not_disturbed(served: Served, body: bytes) -> None:
    slowest, stop = 0.0, threading.Event()

    def ask_others() -> None:
        nonlocal slowest
        with httpx.Client(base_url=served.url, timeout=60, trust_env=False) as http:
            while not stop.is_set():
                begin = time.monotonic()
                assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
                slowest = max(slowest, time.monotonic() - begin)

    other = threading.Thread(target=ask_others)
    other.start()
    try:
        begin = time.monotonic()
        response = served.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        took = time.monotonic() - begin
    finally:
        stop.set()
        other.join()
    assert 400 <= response.status_code < 500, response.text
    assert response.status_code != 422
    assert set(response.json()["error"]) >= {"message", "type", "param", "code"}
    assert len(response.json()["error"]["message"]) < 1000
    assert took < 15
    assert slowest < 5


def test_an_expression_of_exponents_is_answered_or_refused_soon(served: Served) -> None:
    begin = time.monotonic()
    body = form("regex", "(" * 30 + "a" + "{1,50})" * 30)
    response = served.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400)
    assert time.monotonic() - begin < 15


def test_a_flood_of_requests_is_refused_in_part_and_forgotten(served: Served) -> None:
    before = psutil.Process().memory_info().rss
    statuses: list[int] = []

    def flood() -> None:
        with httpx.Client(base_url=served.url, timeout=60, trust_env=False) as http:
            for _ in range(20):
                statuses.append(
                    http.post("/v1/completions", json={"prompt": ["long " * 20] * 8, "max_tokens": 50, "ignore_eos": True}).status_code
                )

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}
    assert served.chat().status_code == 200
    assert psutil.Process().memory_info().rss - before < 200 << 20
