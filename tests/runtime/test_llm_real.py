"""LLM on a real model: SmolLM2 on the CPU engine."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgelm import LLM
from edgelm.errors import ClosedError, ContextOverflowError, InvalidRequestError

QUESTION = [{"role": "user", "content": "Name the capital of France."}]


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> Iterator[LLM]:
    with LLM(smollm2_path, n_ctx=1024) as llm:
        yield llm


def test_an_answer(llm: LLM) -> None:
    done = llm.chat(QUESTION, temperature=0, max_tokens=24)
    assert "Paris" in done.text
    assert done.timings.load_s > 0
    assert done.timings.prefill_s > 0
    assert done.timings.tokens_per_second > 0
    assert llm.detokenize(done.token_ids) == done.text


def test_the_chat_template_is_written_once_and_without_a_second_beginning(llm: LLM) -> None:
    tokens = llm.chat_tokens(QUESTION)
    start = llm.tokenize("<|im_start|>")
    assert len(start) == 1
    assert tokens.count(start[0]) == 3  # system by default, user, assistant
    assert llm.detokenize(tokens).startswith("<|im_start|>system\n")
    assert llm.detokenize(tokens).endswith("<|im_start|>assistant\n")


def test_stream_and_whole_agree(llm: LLM) -> None:
    whole = llm.generate("Once upon a time", seed=5, max_tokens=30)
    deltas = list(llm.generate("Once upon a time", seed=5, max_tokens=30, stream=True))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert llm.generate("Once upon a time", seed=6, max_tokens=30).text != whole.text


def test_logits_score_and_logprobs_agree(llm: LLM) -> None:
    tokens = llm.tokenize("The capital of France is Paris, and the capital of Italy is Rome.")
    logits = llm.logits(tokens).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    score = llm.score(tokens)
    np.testing.assert_allclose(score.logprobs, expected[np.arange(len(tokens) - 1), tokens[1:]], atol=1e-3)
    done = llm.generate(tokens, temperature=0, max_tokens=1, logprobs=3, ignore_eos=True)
    assert done.logprobs is not None
    np.testing.assert_allclose([top.logprob for top in done.logprobs[0].top], np.sort(expected[-1])[::-1][:3], atol=1e-3)


def test_sense_scores_better_than_nonsense(llm: LLM) -> None:
    assert llm.score("She drank a cup of hot tea.").perplexity < llm.score("Tea hot of cup a drank she.").perplexity / 5


def test_related_texts_are_nearer(llm: LLM) -> None:
    cat, dog, money = llm.embed(["A cat sleeps on the mat.", "A dog sleeps on the rug.", "Quarterly revenue rose by ten percent."])
    assert math.isclose(float(np.linalg.norm(cat)), 1.0, rel_tol=1e-5)
    assert cat @ dog > cat @ money


def test_threads_share_the_model_and_give_what_each_would_alone(llm: LLM) -> None:
    prompts = ("One, two, three,", "Red, green,", "The sun is", "My favourite food is")
    alone = [llm.generate(prompt, temperature=0, max_tokens=8).text for prompt in prompts]
    together: dict[str, str] = {}

    def work(prompt: str) -> None:
        together[prompt] = llm.generate(prompt, temperature=0, max_tokens=8).text

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[prompt] for prompt in prompts] == alone


def test_cancelling_an_async_generation_leaves_a_working_model(llm: LLM) -> None:
    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(llm.agenerate("Once", max_tokens=None, ignore_eos=True), 0.2)

    asyncio.run(give_up())
    assert llm.generate("One, two, three,", temperature=0, max_tokens=2).text


def test_the_context_is_a_wall(llm: LLM) -> None:
    with pytest.raises(ContextOverflowError, match="the context holds 1024"):
        llm.generate("word " * 1100)
    with pytest.raises(ContextOverflowError):
        llm.score("word " * 1100)
    done = llm.generate([*llm.tokenize("word"), *llm.tokenize(" word") * 1019], temperature=0, max_tokens=None, ignore_eos=True)
    assert (done.n_generated, done.finish_reason) == (5, "length")


def test_a_context_beyond_the_training_is_refused(smollm2_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="trained for 8192"):
        LLM(smollm2_path, n_ctx=8193)


def test_closed(smollm2_path: Path) -> None:
    llm = LLM(smollm2_path, n_ctx=256)
    stream = llm.generate("Once upon a time", stream=True)
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(ClosedError):
        next(stream)
    with pytest.raises(ClosedError):
        llm.generate("x")
