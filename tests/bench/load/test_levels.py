"""Closed and open loops against a real server."""

from __future__ import annotations

import asyncio
import time

import numpy as np
from scripted_server import GAP_S, N_TOKENS, ScriptedServer

from edgelm.bench.load.client import Client, Server
from edgelm.bench.load.levels import Bounds, closed_loop, open_loop
from edgelm.bench.load.prompts import Prompts
from edgelm.bench.record import LoadLevel


def _closed(server: ScriptedServer, concurrency: int, bounds: Bounds, script: str = "good") -> LoadLevel:
    async def run() -> LoadLevel:
        async with Client(Server(server.url, model=script, timeout_s=20), time.perf_counter()) as client:
            return await closed_loop(client, Prompts(4), concurrency, bounds, lambda _: None)

    return asyncio.run(run())


def _open(server: ScriptedServer, rate: float, bounds: Bounds, script: str = "good", timeout_s: float = 20) -> LoadLevel:
    async def run() -> LoadLevel:
        async with Client(Server(server.url, model=script, timeout_s=timeout_s), time.perf_counter()) as client:
            return await open_loop(client, Prompts(4), rate, bounds, 0, lambda _: None)

    return asyncio.run(run())


def most_at_once(level: LoadLevel) -> int:
    changes = sorted([(r.sent_s, 1) for r in level.requests] + [(r.ended_s, -1) for r in level.requests])
    return int(np.cumsum([change for _, change in changes]).max())


def test_closed_loop_keeps_so_many_in_flight_and_varies_its_prompts() -> None:
    with ScriptedServer() as server:
        level = _closed(server, 3, Bounds(10, None))
    assert (level.state, level.concurrency, level.rate, len(level.requests)) == ("complete", 3, None, 10)
    assert not any(request.error for request in level.requests)
    assert most_at_once(level) == 3
    assert all(request.due_s == request.sent_s for request in level.requests)
    assert len({body["messages"][0]["content"] for body in server.bodies}) == 10
    assert level.span.start_s <= level.requests[0].due_s
    assert level.span.end_s >= max(request.ended_s for request in level.requests)


def test_closed_loop_ends_when_its_time_is_over() -> None:
    with ScriptedServer() as server:
        level = _closed(server, 2, Bounds(None, 0.3))
    assert level.requests
    assert all(request.sent_s - level.span.start_s < 0.3 and not request.error for request in level.requests)


def test_failures_are_kept_apart_and_do_not_end_the_level() -> None:
    with ScriptedServer() as server:
        level = _closed(server, 2, Bounds(6, None), "good,http_503,cut")
    errors = sorted(request.error for request in level.requests)
    assert errors == ["", "", "HTTP 503", "HTTP 503", "connection lost in mid-stream", "connection lost in mid-stream"]
    assert level.state == "complete"


def test_a_level_whose_requests_all_fail_says_so() -> None:
    with ScriptedServer() as server:
        level = _closed(server, 1, Bounds(2, None), "http_500")
    assert level.state == "failed"
    assert "the server said last" in level.reason


def test_open_loop_does_not_spare_a_server_that_falls_behind() -> None:
    """One answer at a time takes at least 8 gaps, so the k-th ends no sooner than k times that, whenever it was due."""
    with ScriptedServer(one_at_a_time=True) as server:
        level = _open(server, 200.0, Bounds(12, None))
    ends = sorted(request.ended_s for request in level.requests)
    assert [end - level.span.start_s >= (k + 1) * (N_TOKENS - 1) * GAP_S for k, end in enumerate(ends)] == [True] * 12
    last = max(level.requests, key=lambda request: request.ended_s)
    assert last.stamps_s[0] - last.due_s >= 11 * (N_TOKENS - 1) * GAP_S - 12 / 200 * 5  # all were due in 12 mean gaps, five times over
    assert most_at_once(level) > 2


def test_open_loop_is_bounded_and_the_wait_is_latency() -> None:
    with ScriptedServer() as server:
        level = _open(server, 500.0, Bounds(8, None, in_flight=2))
    assert most_at_once(level) == 2
    waits = [request.sent_s - request.due_s for request in level.requests]
    assert max(waits) >= 2 * (N_TOKENS - 1) * GAP_S  # the last of 8 waits for others, two at a time
    assert "requests waited here because so many were in flight already" in level.reason


def test_what_waited_too_long_is_an_error_not_a_hole() -> None:
    with ScriptedServer() as server:
        level = _open(server, 500.0, Bounds(4, None, in_flight=1), "stall", timeout_s=0.3)
    errors = [request.error for request in level.requests]
    # One request holds the only place until its limit; of the others one may still be sent, with only milliseconds left.
    assert set(errors) <= {"timeout before it was sent", "timeout in mid-stream", "timeout"}
    assert errors.count("timeout before it was sent") >= 2
    assert len(errors) == 4
    assert level.state == "failed"
    assert all(request.ended_s >= request.due_s + 0.29 for request in level.requests)


def test_open_loop_by_time_sends_all_that_is_due() -> None:
    with ScriptedServer() as server:
        level = _open(server, 50.0, Bounds(None, 0.5))
        again = _open(server, 50.0, Bounds(None, 0.5))
    dues = [request.due_s - level.span.start_s for request in level.requests]
    assert all(due < 0.5 for due in dues)
    np.testing.assert_allclose(dues, [request.due_s - again.span.start_s for request in again.requests], atol=1e-9)


def test_no_arrival_in_the_time_given_is_a_failed_level() -> None:
    with ScriptedServer() as server:
        level = _open(server, 0.001, Bounds(None, 0.01))
    assert (level.state, level.requests) == ("failed", ())
