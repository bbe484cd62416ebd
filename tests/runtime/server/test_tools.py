"""Tools as OpenAI's clients use them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import openai
import pytest
from served import MakeServed, Served

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"], "additionalProperties": False},
    },
}
TIME: Any = {"type": "function", "function": {"name": "get_time"}}
MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def served(make_served: MakeServed) -> Served:
    """Says anything."""
    return make_served(lambda _: np.zeros(258, np.float32), n_ctx=8192)


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return served.openai()


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_that_is_wanted_comes(client: openai.OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(
        model="", messages=MESSAGES, tools=[WEATHER], tool_choice=choice, seed=1, parallel_tool_calls=False
    ).choices[0]
    (call,) = answer.message.tool_calls or ()
    assert call.type == "function"
    assert (answer.finish_reason, answer.message.content, call.function.name) == ("tool_calls", None, "get_weather")
    assert json.loads(call.function.arguments)["unit"] in ("C", "F")
    assert call.id.startswith("call_")


def test_a_streamed_call_comes_in_pieces(client: openai.OpenAI) -> None:
    chunks = [
        chunk.choices[0]
        for chunk in client.chat.completions.create(
            model="", messages=MESSAGES, tools=[WEATHER], tool_choice="required", seed=1, parallel_tool_calls=False, stream=True
        )
    ]
    deltas = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert [delta.index for delta in deltas] == [0] * len(deltas)
    assert [delta.id is not None for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert deltas[0].function is not None
    assert deltas[0].function.name == "get_weather"
    assert len(deltas) > 3
    assert set(json.loads("".join(delta.function.arguments or "" for delta in deltas if delta.function))) == {"unit"}
    assert chunks[-1].finish_reason == "tool_calls"


def test_none_leaves_the_tools_out(served: Served) -> None:
    body = served.chat(tools=[WEATHER], tool_choice="none", max_tokens=5).json()
    assert "tool_calls" not in body["choices"][0]["message"]
    assert body["usage"]["prompt_tokens"] == served.chat(max_tokens=5).json()["usage"]["prompt_tokens"]


def test_results_go_back(served: Served) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    response = served.http.post("/v1/chat/completions", json={"messages": messages, "tools": [TIME], "max_tokens": 3})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("fields", "says_what"),
    [
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [WEATHER, WEATHER]}, "same name"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "none of the tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "retrieval"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "y"}}}]}, "cannot be used"),
        ({"tools": [TIME], "response_format": {"type": "json_object"}}, "another form"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"messages": [{"role": "user"}]}, "content is missing"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "x", "arguments": "[]"}}]}]},
            "JSON object",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(served: Served, fields: Any, says_what: str) -> None:
    response = served.chat(**fields)
    assert response.status_code == 400
    assert says_what in response.json()["error"]["message"]
