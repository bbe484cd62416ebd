"""Responses as OpenAI's clients see them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import openai
import pydantic
import pytest
from byte_model import says
from served import MakeServed, Served

UNIT: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"], "additionalProperties": False},
    "strict": True,
}


@pytest.fixture
def served(make_served: MakeServed) -> Served:
    return make_served(says("Hello 🎉 you"))


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return served.openai()


@pytest.fixture
def babbler(make_served: MakeServed) -> openai.OpenAI:
    return make_served(lambda _: np.zeros(258, np.float32), n_ctx=8192).openai()


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="scripted", input="hi", instructions="Be brief.", temperature=0, metadata={"a": "b"})
    assert (answer.output_text, answer.status, answer.metadata) == ("Hello 🎉 you", "completed", {"a": "b"})
    assert answer.usage is not None
    assert answer.usage.output_tokens == len("Hello 🎉 you".encode())


def test_an_answer_that_was_cut_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="", input="hi", max_output_tokens=5, temperature=0)
    assert (answer.output_text, answer.status) == ("Hello", "incomplete")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_it_streams(client: openai.OpenAI) -> None:
    with client.responses.stream(model="", input=[{"role": "user", "content": "hi"}], temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hello 🎉 you"
    assert final.output_text == "Hello 🎉 you"


def test_an_answer_is_parsed(babbler: openai.OpenAI) -> None:
    class Colour(pydantic.BaseModel):
        warm: bool

    assert isinstance(babbler.responses.parse(model="", input="hi", text_format=Colour).output_parsed, Colour)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_tools_are_called(babbler: openai.OpenAI, choice: Any) -> None:
    fields: Any = {"model": "", "input": "hi", "tools": [UNIT], "tool_choice": choice, "parallel_tool_calls": False}
    (call,) = babbler.responses.create(**fields).output
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert set(json.loads(call.arguments)) == {"unit"}
    with babbler.responses.stream(**fields) as stream:
        (streamed,) = stream.get_final_response().output
    assert set(json.loads(streamed.arguments)) == {"unit"}


def test_conversations_go_on(client: openai.OpenAI) -> None:
    conversation: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "function_call", "call_id": "1", "name": "get_weather", "arguments": '{"unit": "C"}'},
        {"type": "function_call_output", "call_id": "1", "output": "rain"},
        *(item.model_dump(exclude_none=True) for item in client.responses.create(model="", input="hi").output),
    ]
    assert client.responses.create(model="", input=conversation, tools=[UNIT], tool_choice="none").output_text == "Hello 🎉 you"


@pytest.mark.parametrize(
    ("fields", "says_what"),
    [
        ({"previous_response_id": "x"}, "previous_response_id is not supported"),
        ({"store": True}, "store"),
        ({"input": []}, "at least 1 item"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": "x" * 600}, "the context holds 512"),
    ],
)
def test_what_makes_no_sense_is_refused(served: Served, fields: Any, says_what: str) -> None:
    response = served.http.post("/v1/responses", json={"input": "hi", **fields})
    assert response.status_code == 400
    assert says_what in response.json()["error"]["message"]
