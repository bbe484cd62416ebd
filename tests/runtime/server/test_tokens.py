"""What a model makes of text."""

from __future__ import annotations

from typing import Any

import pytest
from byte_model import BEGIN, says
from served import MakeServed, Served


@pytest.fixture
def served(make_served: MakeServed) -> Served:
    return make_served(says("x"))


def ask(served: Served, path: str, **fields: Any) -> Any:
    return served.http.post(path, json=fields).json()


def test_text_to_tokens_and_back(served: Served) -> None:
    tokens = ask(served, "/tokenize", content="hé")["tokens"]
    assert tokens == list("hé".encode())
    assert ask(served, "/detokenize", tokens=tokens) == {"content": "hé"}
    assert ask(served, "/tokenize", content="h", add_special=True)["tokens"] == [BEGIN, ord("h")]
    assert ask(served, "/tokenize", content="hi", with_pieces=True)["tokens"] == [{"id": 104, "piece": "h"}, {"id": 105, "piece": "i"}]


def test_special_tokens_are_read_unless_told_otherwise(served: Served) -> None:
    assert ask(served, "/tokenize", content="<|begin|>")["tokens"] == [BEGIN]
    assert len(ask(served, "/tokenize", content="<|begin|>", parse_special=False)["tokens"]) == 9


def test_a_conversation_is_written_out(served: Served) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert ask(served, "/apply-template", messages=messages) == {"prompt": "<|begin|>user:hi\nassistant:"}
    assert ask(served, "/apply-template", messages=messages, add_generation_prompt=False) == {"prompt": "<|begin|>user:hi\n"}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"content": 1}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [9999]}),
        ("/apply-template", {"messages": []}),
    ],
)
def test_what_makes_no_sense_is_refused(served: Served, path: str, fields: Any) -> None:
    response = served.http.post(path, json=fields)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
