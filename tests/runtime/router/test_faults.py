"""A cloud that fails in every way: each time there is the local answer, explained, in time, and nothing is sent twice that may be billed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cloud_server import (
    DONE,
    Behaviour,
    CloudServer,
    answers,
    cut_off,
    drips,
    event,
    hangs,
    head,
    huge,
    refusing_port,
    says,
    status,
)
from routed import LOCAL, Routed

from edgelm.runtime.router.budget import BudgetLimits
from edgelm.runtime.router.egress import Limits


@dataclass(frozen=True)
class Fault:
    """
    Attributes:
        told: is part of the explanation.
        n_sent: requests that the endpoint sees.
        is_open: how the attempt ended is not known, so that its worst case stays reserved.
    """

    behaviour: Behaviour
    told: str
    n_sent: int = 1
    is_open: bool = True


STREAM = "text/event-stream"
FAULTS = {
    "hangs before its head": Fault(hangs(), "sent nothing for"),
    "hangs in mid-stream": Fault(hangs(2), "sent nothing for"),
    "drips without an end": Fault(drips(), "took too long"),
    "cut off in mid-stream": Fault(cut_off(), "cut off before its end"),
    "cut off before any text": Fault(says(STREAM, b""), "cut off before its end"),
    "done without an end": Fault(says(STREAM, event({"content": "x"}) + DONE), "cut off before its end"),
    "closes without a word": Fault(lambda send, over: None, "broke the connection off"),  # noqa: ARG005
    "401": Fault(status("401 Unauthorized"), "HTTP 401; check the API key", is_open=False),
    "403": Fault(status("403 Forbidden"), "HTTP 403; check the API key", is_open=False),
    "404": Fault(status("404 Not Found"), "HTTP 404; check the address", is_open=False),
    "429 without end": Fault(status("429 Too Many Requests"), "HTTP 429 (rate limit)", n_sent=3, is_open=False),
    "429, come much later": Fault(status("429 Too Many Requests", Retry_After="3600"), "HTTP 429", is_open=False),
    "503 without end": Fault(status("503 Service Unavailable", Retry_After="0"), "HTTP 503", n_sent=3, is_open=False),
    "500": Fault(status("500 Internal Server Error"), "HTTP 500"),
    "502": Fault(status("502 Bad Gateway"), "HTTP 502"),
    "504": Fault(status("504 Gateway Timeout"), "HTTP 504"),
    "redirect": Fault(status("307 Temporary Redirect", Location="http://127.0.0.1:1/"), "points elsewhere", is_open=False),
    "204": Fault(lambda send, over: send(b"HTTP/1.1 204 No Content\r\n\r\n"), "is no answer"),  # noqa: ARG005
    "a web page": Fault(says("text/html", b"<html>log in</html>"), "'text/html', which is no answer"),
    "JSON that is cut off": Fault(says("application/json", b'{"choices": [{"mess'), "no JSON object"),
    "JSON of another kind": Fault(
        says("application/json", b'{"choices": [{"message": 7, "finish_reason": "stop"}]}'), "not of OpenAI's form"
    ),
    "a stream of nonsense": Fault(says(STREAM, b"data: {]\n\n"), "no JSON object"),
    "a stream of no UTF-8": Fault(says(STREAM, b"data: \xff\xfe\n\n"), "no UTF-8"),
    "an error in the stream": Fault(says(STREAM, event({"content": "x"}) + b'data: {"error": {"code": "overloaded"}}\n\n'), "(overloaded)"),
    "an error that repeats a secret": Fault(says(STREAM, b'data: {"error": {"code": "key sk-secret"}}\n\n'), "(no code)"),
    "filtered": Fault(says(STREAM, event({"content": "x"}) + event({}, "content_filter") + DONE), "ended its answer early"),
    "tokens below zero": Fault(
        says(STREAM, event({}, "stop", usage={"prompt_tokens": -1, "completion_tokens": 1})), "not of OpenAI's form"
    ),
    "tokens without end": Fault(
        says(STREAM, event({}, "stop") + b'data: {"usage": {"prompt_tokens": 1e999, "completion_tokens": 1}}\n\n'), "not of OpenAI's form"
    ),
    "huge": Fault(huge(3 << 20), "larger than 1,048,576 bytes"),
    "compressed": Fault(says(STREAM, b"\x1f\x8b", Content_Encoding="gzip"), "compressed"),
    "no HTTP": Fault(lambda send, over: send(b"SSH-2.0-OpenSSH_9.9\r\n"), "broke the connection off"),  # noqa: ARG005
    "endless head": Fault(lambda send, over: send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000), "broke the connection off"),  # noqa: ARG005
}
DEADLINE_S = 3.0


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("reading", ["whole", "restarts"])
def test_the_local_answer_is_given_and_explained(name: str, reading: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    with CloudServer(fault.behaviour) as cloud:
        routed = Routed(tmp_path, cloud.url, timeout_s=1.0, egress=Limits(1.0, 0.3, 1 << 20), limits=BudgetLimits(requests_per_day=3))
        begin = time.monotonic()
        heard = routed.ask(reading=reading, timeout_s=DEADLINE_S)
        assert time.monotonic() - begin < DEADLINE_S
    assert heard.text == LOCAL
    assert heard.told.route == "local"
    assert heard.told.reason == "cloud failed"
    assert fault.told in (heard.told.fault or "")
    assert "secret" not in repr(heard.events)
    assert len(cloud.received) == fault.n_sent
    spent = routed.budget.spent().day
    assert (spent.settled.requests, spent.reserved.requests) == ((0, fault.n_sent) if fault.is_open else (fault.n_sent, 0))
    assert [record.kind for record in routed.records] == ["sent", "ended"] * fault.n_sent


def test_whoever_cannot_take_back_what_was_shown_sees_nothing_of_a_broken_answer(tmp_path: Path) -> None:
    with CloudServer(cut_off()) as cloud:
        heard = Routed(tmp_path, cloud.url).ask(reading="stream")
    assert heard.texts == [LOCAL]


def test_a_refused_connection_costs_nothing(tmp_path: Path) -> None:
    with refusing_port() as port:
        routed = Routed(tmp_path, f"http://127.0.0.1:{port}/v1")
        heard = routed.ask()
    assert heard.text == LOCAL
    assert "cannot be reached" in (heard.told.fault or "")
    assert routed.budget.spent().day.settled.requests == routed.budget.spent().day.reserved.requests == 0


@pytest.mark.parametrize("line", ["429 Too Many Requests", "503 Service Unavailable", "529 Overloaded"])
def test_an_endpoint_that_has_done_nothing_is_asked_again(line: str, tmp_path: Path) -> None:
    with CloudServer(status(line, Retry_After="0"), answers("from the cloud")) as cloud:
        routed = Routed(tmp_path, cloud.url)
        heard = routed.ask()
    assert heard.text == "from the cloud"
    assert len(cloud.received) == 2
    assert routed.budget.spent().day.settled.requests == 2


def test_it_is_not_asked_sooner_than_it_wants(tmp_path: Path) -> None:
    with CloudServer(status("429 Too Many Requests", Retry_After="1"), answers("from the cloud")) as cloud:
        begin = time.monotonic()
        heard = Routed(tmp_path, cloud.url).ask()
    assert heard.text == "from the cloud"
    assert time.monotonic() - begin >= 1.0


def test_retries_keep_to_the_budget(tmp_path: Path) -> None:
    with CloudServer(status("503 Service Unavailable", Retry_After="0")) as cloud:
        routed = Routed(tmp_path, cloud.url, limits=BudgetLimits(requests_per_day=2))
        heard = routed.ask()
    assert heard.text == LOCAL
    assert "requests_per_day is 2" in (heard.told.fault or "")
    assert len(cloud.received) == 2


def test_a_storm_of_errors_opens_the_breaker(tmp_path: Path) -> None:
    with CloudServer(status("500 Internal Server Error")) as cloud:
        routed = Routed(tmp_path, cloud.url)
        heard = [routed.ask() for _ in range(8)]
    assert [each.text for each in heard] == [LOCAL] * 8
    assert len(cloud.received) == 5
    assert "left alone" in (heard[-1].told.fault or "")


def test_a_request_that_is_refused_says_nothing_about_the_endpoint(tmp_path: Path) -> None:
    with CloudServer(status("400 Bad Request")) as cloud:
        routed = Routed(tmp_path, cloud.url)
        for _ in range(8):
            routed.ask()
    assert len(cloud.received) == 8


def test_an_endpoint_that_does_not_stream_is_understood(tmp_path: Path) -> None:
    body = b'{"choices": [{"index": 0, "message": {"content": "whole"}, "finish_reason": "length"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}'
    with CloudServer(says("application/json; charset=utf-8", body)) as cloud:
        heard = Routed(tmp_path, cloud.url).ask()
    assert heard.text == "whole"
    assert (heard.told.cloud_input, heard.told.cloud_output) == (3, 2)


def test_an_answer_whose_usage_is_not_told_costs_its_worst_case(tmp_path: Path) -> None:
    with CloudServer(answers("from the cloud", usage=None)) as cloud:
        routed = Routed(tmp_path, cloud.url)
        heard = routed.ask()
    assert heard.text == "from the cloud"
    spent = routed.budget.spent().day
    assert spent.reserved.requests == 1
    assert heard.told.cost == spent.reserved.money > 0


def test_head_is_what_the_server_writes() -> None:
    assert head().endswith(b"\r\n\r\n")
