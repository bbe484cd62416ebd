"""Completions of text, as OpenAI's clients see them."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from byte_model import says
from served import MakeServed, Served

from edgelm.runtime.scheduler import Limits


@pytest.fixture
def served(make_served: MakeServed) -> Served:
    return make_served(says("and then it ended"))


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return served.openai()


def test_a_text_goes_on(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="scripted", prompt="Once", temperature=0, max_tokens=100)
    assert (answer.choices[0].text, answer.choices[0].finish_reason, answer.object) == ("and then it ended", "stop", "text_completion")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5  # with the beginning-of-text token


def test_without_a_number_it_is_sixteen_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="scripted", prompt="Once", temperature=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("and then it ende", "length")
    whole = client.completions.create(model="scripted", prompt="Once", temperature=0, max_tokens=None)
    assert whole.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("prompt", "n_choices", "n_tokens"),
    [([1, 2, 3], 1, 3), (["a", "bc"], 2, 5), ([[1, 2], [3, 4, 5]], 2, 5), ([[7]], 1, 1)],
)
def test_prompts_are_texts_or_tokens_one_or_several(client: openai.OpenAI, prompt: Any, n_choices: int, n_tokens: int) -> None:
    answer = client.completions.create(model="scripted", prompt=prompt, temperature=0, n=2, max_tokens=3)
    assert [choice.index for choice in answer.choices] == list(range(2 * n_choices))
    assert all(choice.text == "and" for choice in answer.choices)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (n_tokens, 3 * 2 * n_choices)


def test_it_streams(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(model="scripted", prompt="Once", temperature=0, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "and then it ende"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "length"]
    assert chunks[-1].choices == []


def test_log_probabilities_have_the_older_form(client: openai.OpenAI) -> None:
    logprobs = client.completions.create(model="scripted", prompt="Once", temperature=0, max_tokens=3, logprobs=1).choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.text_offset) == (["a", "n", "d"], [0, 1, 2])
    assert logprobs.top_logprobs is not None
    assert [list(top) for top in logprobs.top_logprobs] == [["a"], ["n"], ["d"]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": [1, "a"]}, None),
        ({"prompt": {"a": 1}}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": [999999]}, None),
    ],
)
def test_what_makes_no_sense_is_refused(served: Served, fields: Any, param: str | None) -> None:
    response = served.http.post("/v1/completions", json=fields)
    assert response.status_code == 400
    assert param is None or response.json()["error"]["param"] == param


def test_more_prompts_than_may_ever_wait_are_refused(make_served: MakeServed) -> None:
    served = make_served(says("x"), limits=Limits(n_active=4, n_waiting=6))
    assert served.http.post("/v1/completions", json={"prompt": ["a"] * 5, "n": 2}).status_code == 200
    response = served.http.post("/v1/completions", json={"prompt": ["a"] * 11, "n": 1})
    assert response.status_code == 400
    assert "send fewer" in response.json()["error"]["message"]
