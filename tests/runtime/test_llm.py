"""LLM on a scripted backend: what comes out, when it stops, and what it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from byte_model import BEGIN, END, MakeLLM, says
from numpy.typing import NDArray

from edgelm.backends.base import Chunk
from edgelm.errors import BackendUnavailableError, ClosedError, ContextOverflowError, InvalidRequestError, ModelFileError, TemplateError
from edgelm.runtime.llm import LLM
from edgelm.runtime.results import Completion, Delta
from edgelm.runtime.sampling import SamplingParams

HELLO = [{"role": "user", "content": "Hi"}]


def test_a_whole_completion(make_llm: MakeLLM) -> None:
    llm, backend = make_llm(says("Hello 🎉"))
    done = llm.generate("Hi", temperature=0)
    assert (done.text, done.finish_reason, done.n_prompt_tokens, done.n_generated) == ("Hello 🎉", "stop", 3, 10)
    assert bytes(done.token_ids).decode() == "Hello 🎉"
    assert len(done.timings.token_times) == 10
    assert list(done.timings.token_times) == sorted(done.timings.token_times)
    assert done.timings.time_to_first_token == done.timings.token_times[0]
    assert done.timings.tokens_per_second > 0
    assert backend.calls[0] == (backend.calls[0][0], 3)
    assert {n for _, n in backend.calls[1:]} == {1}


def test_a_stream_gives_the_same_token_by_token(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("Hé!"))
    deltas = list(llm.generate("Hi", temperature=0, stream=True))
    assert [delta.text for delta in deltas] == ["H", "", "é", "!", ""]
    assert [delta.token_ids for delta in deltas] == [(72,), (195,), (169,), (33,), ()]
    assert [delta.finish_reason for delta in deltas] == [None] * 4 + ["stop"]
    assert deltas[0].timings is None
    assert deltas[-1].timings is not None


def test_tokens_are_taken_as_they_are_and_text_gets_its_beginning(make_llm: MakeLLM) -> None:
    seen: list[list[int]] = []

    def script(history: Sequence[int]) -> np.ndarray:
        seen.append(list(history))
        return np.eye(258, dtype=np.float32)[END] * 9

    llm, _ = make_llm(script)
    llm.generate([1, 2, 3], temperature=0)
    llm.generate(np.array([4, 5]), temperature=0)
    llm.generate("a", temperature=0)
    llm.generate("", temperature=0)
    assert seen == [[1, 2, 3], [4, 5], [BEGIN, 97], [BEGIN]]


def test_an_empty_prompt_needs_a_beginning(make_llm: MakeLLM) -> None:
    changes = {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.pre": "qwen2"}
    llm, _ = make_llm(says("x"), **changes)
    if llm.tokenizer.bos_id is None:
        with pytest.raises(InvalidRequestError, match="empty"):
            llm.generate("")
    else:
        assert llm.generate("", temperature=0).n_prompt_tokens == 1


@pytest.mark.parametrize("wrong", [[258], [-1], [0.5], [[1]], ["a"], [[1], [1, 2]], [10**30]])
def test_tokens_outside_the_vocabulary(make_llm: MakeLLM, wrong: list[int]) -> None:
    llm, _ = make_llm(says("x"))
    with pytest.raises(InvalidRequestError, match="from 0 to 257"):
        llm.generate(wrong)


def test_max_tokens(make_llm: MakeLLM) -> None:
    llm, backend = make_llm(says("abcdef"))
    done = llm.generate("x", temperature=0, max_tokens=3)
    assert (done.text, done.finish_reason) == ("abc", "length")
    assert len(backend.calls) == 3


def test_a_stop_string_never_leaks(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("one two three"))
    deltas = list(llm.generate("x", temperature=0, stop=[" thr", "zzz"], stream=True))
    assert "".join(delta.text for delta in deltas) == "one two"
    assert deltas[-1].finish_reason == "stop"


def test_a_character_cut_off_by_max_tokens(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("a🎉"))
    assert llm.generate("x", temperature=0, max_tokens=3).text == "a\ufffd"


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_computed(make_llm: MakeLLM) -> None:
    llm, backend = make_llm(says("x"), n_ctx=8)
    with pytest.raises(ContextOverflowError, match="9 tokens, but the context holds 8") as caught:
        llm.generate("a" * 8, stream=True)
    assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (9, 8)
    assert backend.calls == []


def test_generation_ends_where_the_context_does(make_llm: MakeLLM) -> None:
    llm, _ = make_llm([97], n_ctx=8)
    done = llm.generate([1] * 5, temperature=0, max_tokens=None)
    assert (done.n_generated, done.finish_reason) == (4, "length")
    assert llm.generate([1] * 8, temperature=0, max_tokens=None).n_generated == 1


def test_ignore_eos_never_draws_an_end(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("ab"))
    done = llm.generate("x", temperature=0, max_tokens=6, ignore_eos=True)
    assert (done.n_generated, done.finish_reason) == (6, "length")
    assert END not in done.token_ids


def test_long_prompts_are_read_in_pieces(make_llm: MakeLLM) -> None:
    llm, backend = make_llm(says("x"), n_ctx=2000)
    llm.generate([1] * 1300, temperature=0, max_tokens=1)
    assert [n for _, n in backend.calls] == [32, 512, 512, 244]  # this backend is quick, so the pieces grow at once


def test_a_slow_backend_reads_long_prompts_in_small_pieces(make_llm: MakeLLM) -> None:
    def slowly(_history: Sequence[int]) -> NDArray[np.float32]:
        return np.zeros(258, np.float32)

    llm, backend = make_llm(slowly, n_ctx=2000)
    computes = backend.forward

    def forward(batch: Sequence[Chunk]) -> NDArray[np.float32]:
        time.sleep(0.004 * len(batch[0].tokens))
        return computes(batch)

    backend.forward = forward  # type: ignore[method-assign]
    llm.generate([1] * 300, temperature=0, max_tokens=1)
    assert max(n for _, n in backend.calls) <= 64


def test_an_abandoned_stream_stops_and_frees_its_sequence(make_llm: MakeLLM) -> None:
    llm, backend = make_llm([97])
    stream = llm.generate("x", temperature=0, stream=True)
    next(stream)
    assert len(backend.sequences) == 1
    stream.close()
    assert not backend.sequences
    for _ in llm.generate("x", temperature=0, stream=True):
        break
    gc.collect()
    assert len(backend.calls) == 2
    assert llm.generate("x", stream=True) is not None  # never started: nothing to free


def test_an_error_in_the_backend_frees_the_sequence(make_llm: MakeLLM) -> None:
    def script(history: Sequence[int]) -> np.ndarray:
        if len(history) > 3:
            raise ContextOverflowError(4, 3)
        return np.eye(258, dtype=np.float32)[97]

    llm, backend = make_llm(script)
    with pytest.raises(ContextOverflowError):
        llm.generate([1, 2], temperature=0)
    assert not backend.sequences


def test_an_event_cancels_before_the_next_token(make_llm: MakeLLM) -> None:
    llm, backend = make_llm([97])
    cancelled = threading.Event()
    stream = llm.generate("x", temperature=0, stream=True, cancelled=cancelled)
    next(stream)
    cancelled.set()
    last = list(stream)
    assert [delta.finish_reason for delta in last] == ["cancelled"]
    assert last[0].timings is not None
    assert len(backend.calls) == 1


def test_a_long_prompt_is_cancelled_between_its_pieces(make_llm: MakeLLM) -> None:
    llm, backend = make_llm([97], n_ctx=5000)
    cancelled = threading.Event()
    forward = backend.forward
    backend.forward = lambda batch: (cancelled.set(), forward(batch))[1]  # type: ignore[method-assign]
    done = llm.generate([1] * 3000, temperature=0, cancelled=cancelled)
    assert (done.finish_reason, done.text, done.token_ids) == ("cancelled", "", ())
    assert len(backend.calls) == 1


def test_logprobs_come_from_the_raw_logits(make_llm: MakeLLM) -> None:
    logits = np.full(258, -50.0, np.float32)
    logits[[97, 98, 99]] = np.log([0.6, 0.3, 0.1])
    llm, _ = make_llm(lambda _history: logits)
    done = llm.generate("x", temperature=0.1, top_k=1, max_tokens=2, logprobs=2, logit_bias={98: 50.0})
    assert done.text == "bb"
    assert done.logprobs is not None
    first = done.logprobs[0]
    assert (first.token_id, first.token) == (98, "b")
    assert math.isclose(first.logprob, math.log(0.3), rel_tol=1e-5)
    assert [(top.token, round(math.exp(top.logprob), 3)) for top in first.top] == [("a", 0.6), ("b", 0.3)]
    assert llm.generate("x", max_tokens=1).logprobs is None
    assert llm.generate("x", max_tokens=1, logprobs=0).logprobs[0].top == ()  # type: ignore[index]


def test_same_seed_same_text(make_llm: MakeLLM) -> None:
    logits = np.random.default_rng(0).standard_normal(258).astype(np.float32)
    logits[END] = -100
    llm, _ = make_llm(lambda _history: logits)
    texts = [llm.generate("x", seed=seed, max_tokens=40).token_ids for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_keyword_arguments_override_params(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("abcdef"))
    assert llm.generate("x", SamplingParams(temperature=0, max_tokens=2), max_tokens=4).text == "abcd"


def test_chat_writes_the_template_and_one_beginning_only(make_llm: MakeLLM) -> None:
    seen: list[list[int]] = []

    def script(history: Sequence[int]) -> np.ndarray:
        seen.append(list(history))
        return np.eye(258, dtype=np.float32)[END] * 9

    llm, _ = make_llm(script)
    llm.chat(HELLO, temperature=0)
    assert seen[0] == [BEGIN, *b"user:Hi\nassistant:"]
    llm.chat(HELLO, temperature=0, tools=[{"type": "function"}])
    assert b"tools=1" in bytes(seen[1][1:])
    assert "".join(delta.text for delta in llm.chat(HELLO, temperature=0, stream=True)) == ""


def test_chat_without_a_template(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("x"), **{"tokenizer.chat_template": None})
    with pytest.raises(TemplateError):
        llm.chat(HELLO)


def test_several_threads_use_one_llm(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("the same answer"))
    found: list[Completion] = []
    threads = [threading.Thread(target=lambda: found.append(llm.generate("x", temperature=0))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.text for done in found] == ["the same answer"] * 8


def test_async_whole_and_stream(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("Hello"))

    async def both() -> tuple[Completion, list[Delta], Completion]:
        whole, chat = await asyncio.gather(llm.agenerate("x", temperature=0), llm.achat(HELLO, temperature=0))
        return whole, [delta async for delta in llm.agenerate("x", temperature=0, stream=True)], chat

    whole, deltas, chat = asyncio.run(both())
    assert whole.text == chat.text == "".join(delta.text for delta in deltas) == "Hello"


async def generation_threads_to_end() -> None:
    """Wait with the event loop open: closing it would end the computation too."""
    while any(thread.name.startswith("edgelm-generation") for thread in threading.enumerate()):
        await asyncio.sleep(0.001)


def test_cancelling_the_task_stops_the_computation(make_llm: MakeLLM) -> None:
    waiting = threading.Semaphore(3)

    def script(_history: Sequence[int]) -> np.ndarray:
        assert waiting.acquire(timeout=10)  # the first three calls go through, later ones when the test lets them
        return np.eye(258, dtype=np.float32)[97]

    llm, backend = make_llm(script)

    async def cancel() -> None:
        task = asyncio.create_task(llm.agenerate("x", temperature=0, max_tokens=100))
        while len(backend.calls) < 4:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        waiting.release(50)
        await generation_threads_to_end()

    asyncio.run(cancel())
    assert len(backend.calls) == 4


def test_closing_an_async_stream_stops_the_computation(make_llm: MakeLLM) -> None:
    llm, backend = make_llm([97], n_ctx=100_000)

    async def take_two() -> None:
        stream = llm.agenerate("x", temperature=0, max_tokens=None, stream=True)
        await anext(stream)
        await anext(stream)
        await stream.aclose()
        await generation_threads_to_end()

    asyncio.run(take_two())
    assert not backend.sequences
    assert len(backend.calls) < 100_000


def test_an_error_reaches_the_async_caller(make_llm: MakeLLM) -> None:
    def script(_history: Sequence[int]) -> np.ndarray:
        raise InvalidRequestError("no such thing")

    llm, _ = make_llm(script)
    with pytest.raises(InvalidRequestError, match="no such thing"):
        asyncio.run(llm.agenerate("x"))


def test_score_is_the_log_probability_of_each_next_token(make_llm: MakeLLM) -> None:
    def script(history: Sequence[int]) -> np.ndarray:
        logits = np.full(258, -60.0, np.float32)
        logits[[97, 98]] = np.log([0.75, 0.25]) if history[-1] == BEGIN else np.log([0.5, 0.5])
        return logits

    llm, backend = make_llm(script)
    score = llm.score("ab")
    assert score.token_ids == (BEGIN, 97, 98)
    np.testing.assert_allclose(score.logprobs, np.log([0.75, 0.5]), rtol=1e-6)
    assert math.isclose(score.total, math.log(0.375), rel_tol=1e-6)
    assert math.isclose(score.perplexity, 0.375**-0.5, rel_tol=1e-6)
    assert llm.score([97]).logprobs.shape == (0,)
    assert sum(n for _, n in backend.calls) == 2


def test_score_goes_in_chunks(make_llm: MakeLLM) -> None:
    llm, backend = make_llm(lambda history: np.eye(258, dtype=np.float32)[history[-1]] * 20, n_ctx=2000)
    tokens = [5] * 600 + [6] * 600
    logprobs = llm.score(tokens).logprobs
    assert [n for _, n in backend.calls] == [512, 512, 175]
    assert int(logprobs.argmin()) == 599
    assert (logprobs < -1).sum() == 1


def test_logits_of_every_token(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(lambda history: np.eye(258, dtype=np.float32)[history[-1]], n_ctx=2000)
    tokens = [token % 258 for token in range(1100)]
    logits = llm.logits(tokens)
    assert logits.shape == (1100, 258)
    assert logits.argmax(axis=1).tolist() == tokens
    with pytest.raises(ContextOverflowError):
        llm.logits([1] * 2001)


def test_embed_is_the_normalized_mean(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("x"), n_ctx=2000)
    vectors = llm.embed(["ab", "ba", "zz", "a" * 1500])
    assert (vectors.shape, vectors.dtype) == ((4, 8), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-5)
    assert not np.allclose(vectors[0], vectors[2])
    assert llm.embed([]).shape == (0, 8)
    np.testing.assert_array_equal(llm.embed("ab"), vectors[:1])


def test_embed_where_the_backend_cannot(make_llm: MakeLLM) -> None:
    llm, backend = make_llm(says("x"))
    object.__setattr__(backend.info, "abilities", frozenset())
    with pytest.raises(BackendUnavailableError, match="scripted"):
        llm.embed("a")


def test_tokenize_and_back(make_llm: MakeLLM) -> None:
    llm, _ = make_llm(says("x"))
    assert llm.tokenize("hé") == [*"hé".encode()]
    assert llm.tokenize("a", add_special=True) == [BEGIN, 97]
    assert llm.tokenize("<|end|>") == [END]
    assert llm.tokenize("<|end|>", parse_special=False) == [*b"<|end|>"]
    assert llm.detokenize(llm.tokenize("hé 🎉")) == "hé 🎉"


def test_after_close_everything_says_so(make_llm: MakeLLM) -> None:
    llm, _ = make_llm([97])
    stream = llm.generate("x", temperature=0, stream=True)
    next(stream)
    with llm:
        pass
    llm.close()
    with pytest.raises(ClosedError):
        next(stream)
    for call in (llm.generate, llm.score, llm.embed, lambda _text: llm.logits([1]), lambda _text: llm.chat(HELLO)):
        with pytest.raises(ClosedError):
            call("x")


def test_a_missing_model_says_what_to_do(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("EDGELM_HOME", str(tmp_path))
    with pytest.raises(ModelFileError, match="edgelm pull smollm2-135m"):
        LLM("smollm2-135m")
    with pytest.raises(ModelFileError, match=r"no model file or folder"):
        LLM(tmp_path / "none.gguf")


def test_offline_no_other_machine_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELM_OFFLINE", "1")
    with pytest.raises(InvalidRequestError, match="rpc_servers are other machines"):
        LLM("missing.gguf", "llamacpp", backend_options={"rpc_servers": "192.0.2.1:50052"})
