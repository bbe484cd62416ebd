"""Calls of functions: told from text while they arrive, and never other than the tools allow."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from byte_model import MakeLLM
from hypothesis import given
from hypothesis import strategies as st

from edgelm.errors import InvalidRequestError
from edgelm.runtime.sampling import SamplingParams
from edgelm.runtime.tool_calls import CallPiece, CallReader, Tool, ToolUse, has_tools, written_out

NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
ADD = Tool("add", "Adds.", {"type": "object", "properties": {"a": NUMBER}, "required": ["a"], "additionalProperties": False})
CLOSE = Tool("close", "", {"type": "object", "properties": {}, "additionalProperties": False})
ANYTHING = SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0, max_tokens=400)


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def read(text: str, cuts: list[int]) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls (name, arguments), of a text that arrives in pieces."""
    reader, told, calls = CallReader(), "", []
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    for one in [one for piece in pieces for one in reader.push(piece)] + list(reader.finish()):
        if isinstance(one, str):
            told += one
        elif one.id is not None:
            assert one.id.startswith("call_")
            calls.append((str(one.name), one.arguments))
            assert one.index == len(calls) - 1
        else:
            calls[one.index] = (calls[one.index][0], calls[one.index][1] + one.arguments)
    assert reader.n_calls == len(calls)
    return told, calls


@given(st.lists(st.integers(0, 500), max_size=20))
def test_however_it_arrives_the_same_is_read(cuts: list[int]) -> None:
    arguments = json.dumps({"a": '}\n</tool_call> "<tool_call>"', "b": {"c": [1, 2]}})
    text = "Let me see. <tool" + call("add", arguments) + "\n" + call("close", "{}")
    assert read(text, cuts) == ("Let me see. <tool", [("add", arguments), ("close", "{}")])


@pytest.mark.parametrize("text", ["", "just text", "a <tool_call> by name", "<tool_ca", "<tool_call>\n{", "  spaces  "])
def test_what_is_no_call_is_text(text: str) -> None:
    assert read(text, list(range(50))) == (text, [])


def test_arguments_are_told_as_they_come() -> None:
    reader = CallReader()
    pieces = [piece for part in ('<tool_call>\n{"name": "add", "arguments": {"a"', ": 1", "2}") for piece in reader.push(part)]
    assert [piece.arguments for piece in pieces if isinstance(piece, CallPiece)] == ["", '{"a"', ": 1", "2"]


def test_a_call_that_was_cut_off_keeps_what_there_is() -> None:
    assert read('<tool_call>\n{"name": "add", "arguments": {"a": 1', []) == ("", [("add", '{"a": 1')])


@pytest.mark.parametrize("seed", range(4))
def test_what_must_be_a_call_is_one(make_llm: MakeLLM, seed: int) -> None:
    llm = make_llm(lambda _: np.zeros(258, np.float32), n_ctx=2048)[0]
    answer = llm.generate("x", ANYTHING, seed=seed, form=ToolUse([ADD, CLOSE], must=True, several=False).form())
    told, ((name, arguments),) = read(answer.text, [])
    assert (told, answer.finish_reason) == ("", "stop")
    assert set(json.loads(arguments)) == ({"a"} if name == "add" else set())


def test_what_may_be_a_call_may_be_text(make_llm: MakeLLM) -> None:
    def speaks(text: str) -> Any:
        def logits(history: Any) -> Any:
            row = np.zeros(258, np.float32)
            place = len(history) - 2
            row[(text.encode() + b"\x00")[place] if place < len(text) else 256] = 30
            return row

        return make_llm(logits, n_ctx=2048)[0]

    form = ToolUse([ADD, CLOSE]).form()
    for text in ("no call", call("add", '{"a": 7}'), "first " + call("close", "{}") + "\n" + call("add", '{"a": 1}')):
        assert speaks(text).generate("x", temperature=0, form=form).text == text
    wrong = speaks(call("add", '{"b": 7}')).generate("x", temperature=0, form=form, max_tokens=100).text
    assert '"b"' not in wrong


def test_a_template_that_knows_no_tools_gets_them_as_text() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "3"},
    ]
    system, user, assistant, result = written_out(messages, [ADD])
    assert system["content"].startswith("Be kind.")
    assert '"name": "add"' in system["content"]
    assert user == messages[1]
    assert assistant == {"role": "assistant", "content": call("add", '{"a": 1}')}
    assert result == {"role": "user", "content": "<tool_response>\n3\n</tool_response>"}
    assert [message["role"] for message in written_out(messages[1:2], [ADD])] == ["system", "user"]
    assert written_out(messages[:2], []) == messages[:2]


def test_templates_that_know_them_are_told_apart() -> None:
    assert has_tools("{% if tools %}<tool_call>{% endif %}")
    assert not has_tools("{% if tools %}[TOOL_CALLS]{% endif %}")


@pytest.mark.parametrize("name", ["", "a b", 'x"', "x" * 65, "ä"])
def test_a_name_must_be_one(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="the tool's name"):
        Tool(name)
