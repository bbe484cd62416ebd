"""What the log tells of requests, and what it keeps to itself."""

from __future__ import annotations

import logging
import re
import time

import httpx
import numpy as np
import pytest
from byte_model import says
from numpy.typing import NDArray
from served import MakeServed, Served

SECRET = "my-diagnosis"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "edgelm.server")
    return caplog


def slow(_: object) -> NDArray[np.float32]:
    time.sleep(0.01)
    return np.zeros(258, np.float32)


def last_lines(log: pytest.LogCaptureFixture, n: int = 1) -> list[str]:
    """Of the log, once there are as many."""
    end = time.monotonic() + 5
    while len(log.records) < n:
        assert time.monotonic() < end
        time.sleep(0.01)
    return [record.getMessage() for record in log.records[-n:]]


@pytest.mark.parametrize("stream", [False, True])
def test_each_request_has_a_name_and_a_line_without_its_text(make_served: MakeServed, log: pytest.LogCaptureFixture, stream: bool) -> None:
    response = make_served(says("an-answer")).chat(SECRET, stream=stream)
    name = response.headers["x-request-id"]
    assert response.headers["request-id"] == name
    (line,) = last_lines(log)
    assert re.fullmatch(
        rf"{name} 127\.0\.0\.1 POST /v1/chat/completions 200 \d+\.\d{{3}}s model=scripted prompt=\d+ cached=0 generated=9", line
    )
    assert not [record for record in log.records if SECRET in record.getMessage() or "an-answer" in record.getMessage()]


def test_names_differ_and_errors_have_them_too(make_served: MakeServed, log: pytest.LogCaptureFixture) -> None:
    served = make_served(says("x"))
    responses = [served.chat(SECRET, temperature=-1), served.http.get(f"/{SECRET}"), served.http.get("/v1/models", headers={"Host": "a.b"})]
    assert [response.status_code for response in responses] == [400, 404, 403]
    assert len({response.headers["x-request-id"] for response in responses}) == 3
    lines = last_lines(log, 3)
    assert [re.search(r" (\d{3}) ", line)[1] for line in lines] == ["400", "404", "403"]  # type: ignore[index]


def test_who_leaves_is_told_apart(make_served: MakeServed, log: pytest.LogCaptureFixture) -> None:
    served = make_served(slow)
    with httpx.stream(
        "POST", f"{served.url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "stream": True}
    ) as answer:
        next(answer.iter_lines())
    (line,) = last_lines(log)
    assert " 200 left " in line


def test_a_path_cannot_forge_a_line(make_served: MakeServed, log: pytest.LogCaptureFixture) -> None:
    make_served(says("x")).http.get("/a%0Areq_forged 127.0.0.1 GET / 200")
    (line,) = last_lines(log)
    assert "\n" not in line


def test_the_text_is_logged_if_it_is_wanted(make_served: MakeServed, log: pytest.LogCaptureFixture) -> None:
    response = make_served(says("an-answer"), logs_text=True).chat(SECRET)
    line, asked, answered = last_lines(log, 3)
    assert all(each.startswith(response.headers["x-request-id"]) for each in (line, asked, answered))
    assert SECRET in asked
    assert "an-answer" in answered


def test_a_fault_is_told_without_what_was_asked(make_served: MakeServed, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError(SECRET)

    served: Served = make_served(says("x"))
    monkeypatch.setattr("edgelm.runtime.server.chat_completions.chat_request", break_down)
    response = served.chat()
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert response.headers["x-request-id"] in response.text
    assert SECRET not in response.text
