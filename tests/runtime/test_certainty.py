"""How certain a model was: against a float64 softmax, and through everything that hands it on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_model import END, MakeLLM, says
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from edgelm.runtime.certainty import UNKNOWN, TokenCertainty, certainty_of
from edgelm.runtime.chat_model import Asker, ChatRequest, Event, TextDelta, ToolCallDelta
from edgelm.runtime.llm import LLM
from edgelm.runtime.local_model import LocalModel
from edgelm.runtime.sampling import SamplingParams, log_softmax
from edgelm.runtime.tool_calls import Tool, ToolUse

Logits = NDArray[np.float32]
ROWS = arrays.arrays(np.float32, st.integers(2, 40), elements=st.floats(-60, 60, width=32))


def oracle(logits: Logits, token: int) -> TokenCertainty:
    logs = log_softmax(logits)
    first, second = np.sort(logs)[::-1][:2]
    return TokenCertainty(float(logs[token]), float(first - second), float(-(np.exp(logs) * logs).sum()))


def check(found: TokenCertainty, wanted: TokenCertainty) -> None:
    assert found.logprob == pytest.approx(wanted.logprob, rel=1e-5, abs=1e-5)
    assert found.margin == pytest.approx(wanted.margin, rel=1e-5, abs=1e-5)
    assert found.entropy == pytest.approx(wanted.entropy, rel=1e-5, abs=1e-5)


@given(ROWS, st.data())
def test_certainty_is_that_of_a_float64_softmax(logits: Logits, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    before = logits.copy()
    check(certainty_of(logits, token), oracle(logits, token))
    np.testing.assert_array_equal(logits, before)


def test_a_whole_vocabulary_is_summed_exactly_enough() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 262_144).astype(np.float32)
    check(certainty_of(logits, 77), oracle(logits, 77))
    flat = certainty_of(np.zeros(262_144, np.float32), 3)
    assert flat.entropy == pytest.approx(math.log(262_144), rel=1e-9)
    assert flat.margin == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_not_finite_is_unknown(bad: float, place: int) -> None:
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    logits[place] = bad
    assert repr(certainty_of(logits, 0)) == repr(UNKNOWN)


def test_logits_that_overflow_when_subtracted_are_unknown() -> None:
    assert repr(certainty_of(np.array([3e38, -3e38, 0.0], np.float32), 0)) == repr(UNKNOWN)


def noisy(history: Sequence[int]) -> Logits:
    """Logits of 258 tokens that depend on the last one only."""
    return np.random.default_rng(history[-1]).normal(0, 2, 258).astype(np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0},
        {"temperature": 5.0, "seed": 1},
        {"logit_bias": {7: 100.0}},
        {"repeat_penalty": 2.0, "presence_penalty": 3.0, "seed": 2},
        {"ignore_eos": True, "top_k": 1},
    ],
)
def test_no_setting_of_the_sampler_changes_it(make_llm: MakeLLM, changes: dict[str, Any]) -> None:
    llm, _ = make_llm(noisy)
    done = llm.generate([65], certainty=True, max_tokens=6, **changes)
    assert done.certainties is not None
    history = [65]
    for token, found in zip([*done.token_ids, END], done.certainties, strict=False):
        check(found, oracle(noisy(history), token))
        history.append(token)


def test_the_end_of_the_text_has_its_own(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("abc"))
    done = llm.generate("x", certainty=True)
    assert done.certainties is not None
    assert (done.n_generated, len(done.certainties)) == (3, 4)
    assert all(one.logprob > -1e-6 for one in done.certainties)
    cut = llm.generate("x", certainty=True, max_tokens=2)
    assert cut.certainties is not None
    assert len(cut.certainties) == 2


def test_who_does_not_ask_gets_none(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("abc"))
    assert llm.generate("x").certainties is None
    assert all(delta.certainties is None for delta in llm.generate("x", stream=True))


async def answer(model: LocalModel, request: ChatRequest) -> list[Event]:
    events = await model.chat(request, Asker())
    try:
        return [event async for event in events]
    finally:
        events.close()


def ask(llm: LLM, **fields: Any) -> list[Event]:
    model = LocalModel(llm)
    try:
        return asyncio.run(answer(model, ChatRequest([{"role": "user", "content": "hi"}], **fields)))
    finally:
        model.close()


def test_a_local_model_hands_all_of_them_on(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("abc"))
    events = ask(llm, params=SamplingParams(certainty=True), n=2)
    for choice in range(2):
        heard = [event for event in events if isinstance(event, TextDelta) and event.choice == choice]
        assert "".join(event.text for event in heard) == "abc"
        assert sum(len(event.certainties or ()) for event in heard) == 4


def test_also_where_the_answer_calls_a_tool(make_llm: MakeLLM) -> None:
    said = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    llm, _ = make_llm(says(said), n_ctx=2048)
    use = ToolUse((Tool("look", "", {"type": "object", "properties": {}}),))
    events = ask(llm, params=SamplingParams(certainty=True, temperature=0), tools=use)
    assert any(isinstance(event, ToolCallDelta) for event in events)
    heard = [event for event in events if isinstance(event, TextDelta)]
    assert sum(len(event.certainties or ()) for event in heard) == len(said) + 1


def test_a_real_model_is_as_certain_as_its_log_probabilities_say(smollm2_path: Path) -> None:
    with LLM(smollm2_path, n_ctx=256) as llm:
        question = [{"role": "user", "content": "Name the capital of France."}]
        done = llm.chat(question, temperature=0, max_tokens=16, logprobs=2, certainty=True)
    assert done.certainties is not None
    assert done.logprobs is not None
    for found, wanted in zip(done.certainties, done.logprobs, strict=False):
        assert found.logprob == pytest.approx(wanted.logprob, abs=1e-5)
        assert found.margin == pytest.approx(wanted.top[0].logprob - wanted.top[1].logprob, abs=1e-5)
    assert len(done.certainties) == done.n_generated + (done.finish_reason == "stop")
