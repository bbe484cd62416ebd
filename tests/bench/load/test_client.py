"""One request against a real server that answers well, oddly, or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from scripted_server import FIRST_S, GAP_S, N_TOKENS, ScriptedServer

from edgelm.bench.load.client import Client, Server
from edgelm.bench.record import Request
from edgelm.errors import InvalidRequestError, MeasurementError


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted


def _ask(scripted: ScriptedServer, script: str, **changes: object) -> tuple[Request, Client]:
    async def ask() -> tuple[Request, Client]:
        async with Client(Server(scripted.url, model=script, **changes), time.perf_counter()) as client:
            return await client.ask("hello"), client

    return asyncio.run(ask())


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_times_every_piece(server: ScriptedServer, endpoint: str) -> None:
    async def ask() -> tuple[Request, float]:
        origin = time.perf_counter()
        async with Client(Server(server.url, endpoint, "good"), origin) as client:
            return await client.ask("hello"), origin

    request, origin = asyncio.run(ask())
    assert request.error == ""
    assert (request.n_prompt, request.n_generated, request.counted) == (7, N_TOKENS, True)
    written = [time_s - origin for time_s in server.writes_s[-1]]
    assert len(request.stamps_s) == len(written) == N_TOKENS
    assert all(stamp >= write for stamp, write in zip(request.stamps_s, written, strict=True))
    assert request.stamps_s[0] - request.sent_s >= FIRST_S
    assert request.stamps_s[-1] - request.stamps_s[0] >= (N_TOKENS - 2) * GAP_S  # the first may be seen late
    assert request.ended_s >= request.stamps_s[-1]
    assert ("prompt" in server.bodies[-1]) is (endpoint == "completions")


@pytest.mark.parametrize(
    ("script", "error", "n_pieces"),
    [
        ("http_500", "HTTP 500", 0),
        ("http_302", "HTTP 302", 0),
        ("json", "no event stream", 0),
        ("hang_up", "connection lost", 0),
        ("silent", "timeout", 0),
        ("stall", "timeout in mid-stream", 1),
        ("cut", "connection lost in mid-stream", 1),
        ("cut_early", "connection lost", 0),
        ("no_end", "stream ended early", 1),
        ("done_alone", "ended without finish_reason", 1),
        ("half_event", "stream ended early", 1),
        ("garbage", "malformed JSON", 1),
        ("not_an_event", "malformed event", 1),
        ("endless_line", "event without an end", 0),
        ("empty", "empty answer", 0),
        ("error_event", "error in the stream", 1),
        ("error_line", "error in the stream", 1),
        ("abort", "server gave up", 0),
    ],
)
def test_names_every_failure(server: ScriptedServer, script: str, error: str, n_pieces: int) -> None:
    request, _ = _ask(server, script, timeout_s=0.3 if script in ("silent", "stall") else 20.0)
    assert request.error == error
    assert len(request.stamps_s) == n_pieces


def test_nobody_there() -> None:
    async def ask() -> Request:
        async with Client(Server("http://127.0.0.1:1", model="good"), time.perf_counter()) as client:
            return await client.ask("hello")

    assert asyncio.run(ask()).error == "no connection"


def test_an_unusual_stream_is_read_all_the_same(server: ScriptedServer) -> None:
    request, _ = _ask(server, "odd")
    assert request.error == ""
    assert len(request.stamps_s) == 2
    assert (request.n_generated, request.counted, request.n_prompt) == (2, False, None)


def test_one_piece_gives_one_instant(server: ScriptedServer) -> None:
    request, _ = _ask(server, "one_piece")
    assert request.error == ""
    assert len(request.stamps_s) == N_TOKENS
    assert len(set(request.stamps_s)) == 1


def test_time_runs_from_when_a_request_was_due(server: ScriptedServer) -> None:
    async def ask() -> Request:
        async with Client(Server(server.url, model="good", timeout_s=1.0), time.perf_counter() - 100) as client:
            return await client.ask("hello", due_s=client.now() - 5)

    request = asyncio.run(ask())
    assert request.error == "timeout"
    assert request.sent_s - request.due_s >= 5


def test_connect_learns_the_model_and_that_tokens_are_not_counted() -> None:
    async def connect(client: Client) -> tuple[Request, Server]:
        async with client:
            return await client.connect("hello"), client.server

    with ScriptedServer(models=b'{"data": [{"id": "no_usage_known"}]}') as scripted:
        first, learned = asyncio.run(connect(Client(Server(scripted.url), 0.0)))
    assert first.error == ""
    assert not first.counted
    assert (learned.model, learned.usage) == ("no_usage_known", False)


@pytest.mark.parametrize(
    ("script", "models", "says"),
    [
        ("http_401", b"", "HTTP 401 .*the key was"),
        ("", b"[]", "lists no models"),
        ("", b'{"data": []}', "lists no models"),
        ("", b"<html>", "lists no models"),
    ],
)
def test_connect_says_what_is_wrong(script: str, models: bytes, says: str) -> None:
    async def connect(client: Client) -> None:
        async with client:
            await client.connect("hello")

    with ScriptedServer(models=models) as scripted, pytest.raises(MeasurementError, match=says) as caught:
        asyncio.run(connect(Client(Server(scripted.url, model=script, key="sk-secret"), 0.0)))
    assert "sk-secret" not in str(caught.value)


def test_connect_without_a_server() -> None:
    async def connect(client: Client) -> None:
        async with client:
            await client.connect("hello")

    for model in ("", "good"):
        with pytest.raises(MeasurementError, match="start the server"):
            asyncio.run(connect(Client(Server("http://127.0.0.1:1", model=model), 0.0)))


def test_the_key_goes_to_the_server_alone(server: ScriptedServer) -> None:
    request, client = _ask(server, "good,http_500", key="sk-secret")
    assert "Bearer sk-secret" in server.headers[-1]
    assert "sk-secret" not in f"{request} {client.server} {client.last_words}"


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://host", "http://", "http://me:secret@host", "http://host/v1?key=secret", ""])
def test_bad_addresses(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="address") as caught:
        Server(url)
    assert "secret" not in str(caught.value)


def test_addresses_without_a_path_get_the_version() -> None:
    assert Server("http://host:1/").base == Server("http://host:1").base == "http://host:1/v1"
    assert Server("http://host/api/v3/").base == "http://host/api/v3"


def test_a_key_that_no_header_can_hold() -> None:
    with pytest.raises(InvalidRequestError, match="API key"):
        Server("http://host", key="a\nb")


def test_ignore_eos_is_sent_only_when_asked_for(server: ScriptedServer) -> None:
    _ask(server, "good")
    assert "ignore_eos" not in server.bodies[-1]
    _ask(server, "good", ignore_eos=True, n_generate=5)
    assert server.bodies[-1]["ignore_eos"] is True
    assert server.bodies[-1]["max_tokens"] == 5
