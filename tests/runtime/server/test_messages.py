"""Messages as Anthropic's clients see them."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import numpy as np
import pytest
from byte_model import says
from served import MakeServed, Served

MESSAGES: Any = [{"role": "user", "content": "hi"}]
UNIT: Any = {
    "name": "get_weather",
    "description": "The weather.",
    "input_schema": {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"], "additionalProperties": False},
}


@pytest.fixture
def served(make_served: MakeServed) -> Served:
    return make_served(says("Hello 🎉 you"))


@pytest.fixture
def babbler(make_served: MakeServed) -> Served:
    return make_served(lambda _: np.zeros(258, np.float32), n_ctx=8192)


def client_of(served: Served) -> anthropic.Anthropic:
    return served.anthropic()


def test_a_whole_answer(served: Served) -> None:
    answer = client_of(served).messages.create(model="scripted", max_tokens=100, messages=MESSAGES, system="Be brief.")
    assert (answer.role, answer.type, answer.stop_reason, answer.stop_sequence) == ("assistant", "message", "end_turn", None)
    (block,) = answer.content
    assert block.type == "text"
    assert block.text == "Hello 🎉 you"
    assert answer.usage.output_tokens == len("Hello 🎉 you".encode())


@pytest.mark.parametrize(
    ("fields", "text", "reason", "stop"),
    [({"max_tokens": 5}, "Hello", "max_tokens", None), ({"stop_sequences": ["zz", "lo"]}, "Hel", "stop_sequence", "lo")],
)
def test_why_it_ended(served: Served, fields: Any, text: str, reason: str, stop: str | None) -> None:
    answer = client_of(served).messages.create(**{"model": "", "max_tokens": 100, "messages": MESSAGES, **fields})
    assert (answer.content[0].text, answer.stop_reason, answer.stop_sequence) == (text, reason, stop)


def test_it_streams(served: Served) -> None:
    with client_of(served).messages.stream(model="", max_tokens=100, messages=MESSAGES) as stream:
        assert "".join(stream.text_stream) == "Hello 🎉 you"
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == len("Hello 🎉 you".encode())
    body = {"max_tokens": 100, "messages": MESSAGES, "stream": True}
    names = [
        line.removeprefix("event: ") for line in served.http.post("/v1/messages", json=body).text.splitlines() if line.startswith("event")
    ]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


@pytest.mark.parametrize(
    "choice",
    [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}],
)
def test_tools_are_used(babbler: Served, choice: Any) -> None:
    fields: Any = {"model": "", "max_tokens": 500, "messages": MESSAGES, "tools": [UNIT], "tool_choice": choice}
    answer = client_of(babbler).messages.create(**fields)
    (block,) = answer.content
    assert (answer.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "get_weather")
    assert block.input["unit"] in ("C", "F")
    with client_of(babbler).messages.stream(**fields) as stream:
        final = stream.get_final_message()
    assert final.content[0].type == "tool_use"
    assert set(final.content[0].input) == {"unit"}


def test_an_error_in_a_stream_is_an_event_that_the_client_raises(make_served: MakeServed) -> None:
    served = make_served(lambda _: np.zeros(258, np.float32), n_ctx=100_000)
    stream = client_of(served).messages.stream(model="", max_tokens=100_000, messages=MESSAGES)

    def read_on() -> None:
        with stream as events:
            for _ in events.text_stream:
                served.model.scheduler.close()  # as when the server ends

    with pytest.raises(anthropic.APIStatusError, match="was closed"):
        read_on()


def test_results_go_back_and_conversations_are_counted(served: Served) -> None:
    used = {"type": "tool_use", "id": "1", "name": "get_weather", "input": {"unit": "C"}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "rain"}]}
    conversation: Any = [
        *MESSAGES,
        {"role": "assistant", "content": [{"type": "text", "text": "So:"}, used]},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]
    client = client_of(served)
    counted = client.messages.count_tokens(model="", messages=conversation).input_tokens
    answer = client.messages.create(model="", max_tokens=5, messages=conversation)
    assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) == counted
    assert client.messages.count_tokens(model="", messages=conversation, tools=[UNIT]).input_tokens > counted


@pytest.mark.parametrize(
    ("fields", "says_what"),
    [
        ({}, "max_tokens"),
        ({"max_tokens": 5, "thinking": {}}, "thinking is not supported"),
        ({"max_tokens": 5, "temperature": 1.5}, "less than or equal to 1"),
        ({"max_tokens": 5, "tool_choice": {"type": "any"}}, "there are no tools"),
        ({"max_tokens": 5, "tools": [UNIT], "tool_choice": {"type": "tool"}}, "none of the tools"),
        ({"max_tokens": 5, "messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"max_tokens": 5, "messages": [{"role": "user", "content": "x" * 600}]}, "the context holds 512"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_makes_no_sense_is_refused(served: Served, fields: Any, says_what: str, stream: bool) -> None:
    response = served.http.post("/v1/messages", json={"messages": MESSAGES, "stream": stream, **fields})
    body = json.loads(response.text)
    assert (response.status_code, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")
    assert says_what in body["error"]["message"]
