"""Chat completions as OpenAI's clients see them."""

from __future__ import annotations

import json
import math
import re
import time
from typing import Annotated, Any

import httpx
import numpy as np
import openai
import pydantic
import pytest
from byte_model import END, says
from served import MakeServed, Served

from edgelm.runtime.scheduler import Limits

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def served(make_served: MakeServed) -> Served:
    return make_served(says("Hello 🎉 you"))


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return served.openai()


def slow(_: Any) -> Any:
    """Says "a" for ever, some hundred times a second."""
    time.sleep(0.005)
    logits = np.zeros(258, np.float32)
    logits[ord("a")] = 20
    return logits


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="scripted", messages=MESSAGES, temperature=0)
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert choice.message.content == "Hello 🎉 you"
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len("Hello 🎉 you".encode())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_answer_has_its_role_once_and_its_reason_last(served: Served) -> None:
    chunks = events(served.chat(stream=True, stream_options={"include_usage": True}, temperature=0).text)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert [choice["delta"].get("role") for choice in choices] == ["assistant"] + [None] * (len(choices) - 1)
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert choices[-1]["delta"] == {}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Hello 🎉 you"
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len("Hello 🎉 you".encode())


def test_without_being_asked_no_usage_is_streamed(served: Served) -> None:
    chunks = events(served.chat(stream=True).text)
    assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)


def test_the_official_client_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="scripted", messages=MESSAGES, stream=True, temperature=0)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello 🎉 you"


def test_several_answers_have_their_own_random_numbers_and_one_seed_repeats_them(make_served: MakeServed) -> None:
    served = make_served(lambda _: np.zeros(258, np.float32))  # everything is as likely

    def ask() -> list[str]:
        body = served.chat(n=3, seed=7, max_tokens=20, temperature=1, top_k=0, top_p=1, min_p=0, logit_bias={str(END): -100}).json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert body["usage"]["completion_tokens"] == 60
        return [choice["message"]["content"] for choice in body["choices"]]

    first = ask()
    assert len(set(first)) == 3
    assert ask() == first


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_an_answer_ends_after_so_many_tokens(served: Served, field: str) -> None:
    body = served.chat(**{field: 5}, temperature=0).json()
    assert (body["choices"][0]["message"]["content"], body["choices"][0]["finish_reason"]) == ("Hello", "length")


@pytest.mark.parametrize("stop", ["lo", ["xyz", "lo"]])
def test_an_answer_ends_at_a_stop_string(served: Served, stop: Any) -> None:
    body = served.chat(stop=stop, temperature=0).json()
    assert (body["choices"][0]["message"]["content"], body["choices"][0]["finish_reason"]) == ("Hel", "stop")


def test_log_probabilities_are_told_of_each_token(served: Served) -> None:
    body = served.chat(logprobs=True, top_logprobs=2, temperature=0, max_tokens=2).json()
    first, second = body["choices"][0]["logprobs"]["content"]
    assert (first["token"], second["token"]) == ("H", "e")
    assert first["bytes"] == [72]
    assert first["logprob"] == pytest.approx(20 - math.log(257 + math.exp(20)))
    assert first["top_logprobs"][0]["token"] == "H"
    assert len(first["top_logprobs"]) == 2


def test_a_bias_forbids_a_token(served: Served) -> None:
    body = served.chat(logit_bias={str(ord("H")): -100}, temperature=0, max_tokens=3).json()
    assert body["choices"][0]["message"]["content"] == "\x00el"


def test_parts_of_text_and_developers_are_read(make_served: MakeServed) -> None:
    heard: list[str] = []

    def listen(history: Any) -> Any:
        heard.append(bytes(token for token in history if token < 256).decode())
        logits = np.zeros(258, np.float32)
        logits[END] = 20
        return logits

    served = make_served(listen)
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    assert served.http.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
    assert heard == ["system:be brief\nuser:one two\nassistant:"]


class Person(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(max_length=5)]
    age: Annotated[int, pydantic.Field(ge=0, le=150)]


def test_the_official_client_parses_an_answer_of_a_given_form(make_served: MakeServed) -> None:
    served = make_served(lambda _: np.zeros(258, np.float32))
    client = served.openai()
    answer = client.chat.completions.parse(model="", messages=MESSAGES, response_format=Person, seed=1)
    assert isinstance(answer.choices[0].message.parsed, Person)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"type": "json_object"}, r"\{.*\}"),
        ({"type": "regex", "text": "a{3}"}, "aaa"),
        ({"type": "lark", "text": 'start: "b" | "c"'}, "[bc]"),
        ({"type": "gbnf", "text": 'root ::= "d"'}, "d"),
        ({"type": "text"}, ".*"),
    ],
)
def test_answers_have_their_form(make_served: MakeServed, form: Any, pattern: str) -> None:
    served = make_served(lambda _: np.zeros(258, np.float32))
    body = served.chat(response_format=form, seed=3, max_tokens=300, logit_bias={"125": 9}).json()
    assert re.fullmatch(pattern, body["choices"][0]["message"]["content"], re.DOTALL)


def test_the_same_beginning_is_not_computed_again(make_served: MakeServed) -> None:
    served = make_served(says("x"))
    first = served.chat("a" * 200).json()["usage"]
    second = served.chat("a" * 200).json()["usage"]
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] == first["prompt_tokens"] - 1


@pytest.mark.parametrize(
    ("fields", "param", "says_what"),
    [
        ({"foo": 1}, "foo", "not supported"),
        ({"functions": []}, "functions", "not supported"),
        ({"response_format": {"type": "poem"}}, "response_format", "does not match"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "y"}}}}, None, "cannot be used"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, None, "ignore_eos"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "differ"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"stop": [""]}, "stop.0", "at least 1 character"),
        ({"stop": ["x"] * 5000}, "stop", "at most 16"),
        ({"logit_bias": {"dog": 1}}, "logit_bias", "numbers of tokens"),
        ({"logit_bias": {"9999": 1}}, None, "vocabulary"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'system', 'developer'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages.0.content.0.type", "text"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(served: Served, fields: Any, param: str | None, says_what: str) -> None:
    response = served.chat(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert says_what in error["message"]
    assert param is None or error["param"] == param


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"", b'{"messages": NaN}', b"[" * 100_000])
def test_what_is_no_request_is_refused(served: Served, body: bytes) -> None:
    response = served.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    assert served.chat().status_code == 200


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(served: Served, value: str) -> None:
    body = f'{{"messages": [{{"role": "user", "content": "x"}}], "temperature": {value}}}'
    response = served.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "temperature")


def test_a_lone_surrogate_is_refused(served: Served) -> None:
    body = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'
    response = served.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_does_not_fit_is_refused_before_the_first_byte(served: Served, stream: bool) -> None:
    response = served.chat("x" * 600, stream=stream)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["n_prompt_tokens"] > 600
    assert error["n_ctx"] == 512


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has scripted"):
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)


def test_a_full_line_is_told_to_ask_later(make_served: MakeServed) -> None:
    served = make_served(slow, limits=Limits(n_active=1, n_waiting=0))
    with pytest.raises(openai.RateLimitError) as caught:
        served.openai().chat.completions.create(model="", messages=MESSAGES, n=2)
    assert int(caught.value.response.headers["retry-after"]) > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_may_set_its_time(make_served: MakeServed, stream: bool) -> None:
    served = make_served(slow)
    response = served.chat(timeout=0.2, stream=stream)
    if stream:
        last = json.loads(response.text.split("data: ")[-1])
        assert response.status_code == 200
    else:
        last = response.json()
        assert response.status_code == 408
    assert last["error"]["type"] == "timeout_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_place(make_served: MakeServed, stream: bool) -> None:
    served = make_served(slow, limits=Limits(cache_bytes=0), n_ctx=100_000)
    body = {"messages": MESSAGES, "stream": stream}
    if stream:
        with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_bytes())
    else:
        with pytest.raises(httpx.ReadTimeout):
            served.http.post("/v1/chat/completions", json=body, timeout=0.3)
    end = time.monotonic() + 5
    while served.backends[-1].sequences:
        assert time.monotonic() < end
        time.sleep(0.01)
