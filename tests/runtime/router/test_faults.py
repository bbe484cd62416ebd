"""A cloud that fails in every way: there is the local answer, explained, in time, and nothing is sent twice that may be billed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from cloud_faults import FAULTS
from cloud_server import CloudServer, answers, cut_off, head, refusing_port, says, status
from routed import LOCAL, Reading, Routed

from edgelm.runtime.router.amounts import BudgetLimits
from edgelm.runtime.router.egress import Limits
from edgelm.runtime.router.keys import key_of

DEADLINE_S = 3.0


SOME_TEXT_IS_SHOWN = ("hangs in mid-stream", "cut off in mid-stream", "an error in the stream", "filtered", "huge")


@pytest.mark.parametrize(("name", "reading"), [*((name, "whole") for name in FAULTS), *((name, "restarts") for name in SOME_TEXT_IS_SHOWN)])
def test_the_local_answer_is_given_and_explained(name: str, reading: Reading, tmp_path: Path) -> None:
    fault = FAULTS[name]
    with CloudServer(fault.behaviour) as cloud:
        routed = Routed(tmp_path, cloud.url, timeout_s=1.0, egress=Limits(1.0, 0.3, 1 << 20), limits=BudgetLimits(requests_per_day=3))
        begin = time.monotonic()
        heard = routed.ask(reading=reading, timeout_s=DEADLINE_S)
        assert time.monotonic() - begin < DEADLINE_S
    assert heard.text == LOCAL
    assert len(heard.texts) == (2 if reading == "restarts" else 1) + (reading == "restarts")
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


def test_without_its_key_nothing_is_tried(tmp_path: Path) -> None:
    with CloudServer() as cloud:
        routed = Routed(tmp_path, cloud.url, key=key_of("NO_SUCH_KEY", None))
        heard = routed.ask()
        assert cloud.n_connections == 0
    assert (heard.text, heard.told.reason) == (LOCAL, "cloud failed")
    assert "NO_SUCH_KEY" in (heard.told.fault or "")
    assert routed.records == []
    assert routed.budget.spent().day.settled.requests == 0


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


def test_what_was_wrong_is_told_by_its_code_and_field_only(tmp_path: Path) -> None:
    error = {"message": "jane@example.org said", "type": "invalid_request_error", "code": "unsupported_value", "param": "temperature"}
    with CloudServer(status("400 Bad Request", error), says("text/html", b"<p>jane</p>" * 3000)) as cloud:
        fault = Routed(tmp_path, cloud.url).ask().told.fault or ""
    assert fault.endswith("answered HTTP 400, unsupported_value (temperature)")


def test_an_endpoint_that_does_not_stream_is_understood(tmp_path: Path) -> None:
    choice = {"index": 0, "message": {"content": "whole"}, "finish_reason": "length"}
    body = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    with CloudServer(says("application/json; charset=utf-8", json.dumps(body).encode())) as cloud:
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
