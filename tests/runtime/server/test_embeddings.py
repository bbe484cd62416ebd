"""Embeddings as OpenAI's clients see them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from byte_model import says
from served import MakeServed, Served


@pytest.fixture
def served(make_served: MakeServed) -> Served:
    return make_served(says("x"))


def test_each_text_has_the_vector_that_the_llm_gives(served: Served) -> None:
    client = served.openai()  # which asks for base64
    answer = client.embeddings.create(model="scripted", input=["one", "another"])
    assert answer.usage.prompt_tokens == 4 + 8
    wanted = served.model.llm.embed(["one", "another"])
    assert np.array_equal(np.array([one.embedding for one in answer.data], np.float32), wanted)
    numbers = client.embeddings.create(model="scripted", input="one", encoding_format="float").data[0].embedding
    assert np.allclose(numbers, wanted[0])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "dimensions": 3}, "dimensions"),
        ({"input": "x" * 600}, None),
        ({"input": [999]}, None),
    ],
)
def test_what_makes_no_sense_is_refused(served: Served, fields: Any, param: str | None) -> None:
    response = served.http.post("/v1/embeddings", json=fields)
    assert response.status_code == 400
    assert param is None or response.json()["error"]["param"] == param
    assert served.chat().status_code == 200
