"""What stands above the border is the same on every backend: sampling, streaming, log probabilities, chat, scores, embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conformance.cases import N_CTX, N_VOCAB, Case
from conformance.sequences import distance, prompt

from edgelm.backends.base import Backend
from edgelm.backends.reference import ReferenceModel
from edgelm.backends.scripted import ScriptedBackend
from edgelm.quant.open_model import open_model
from edgelm.runtime.llm import LLM
from edgelm.runtime.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "in the hen"}]
SAMPLED = {"temperature": 0.7, "top_k": 30, "seed": 5, "max_tokens": 12, "ignore_eos": True}


def llm_on(backend: Backend, model: Path) -> LLM:
    metadata = open_model(model).metadata
    return LLM.from_parts(backend, Tokenizer.from_metadata(metadata), metadata)


@pytest.fixture
def llm(backend: Backend, model: Path) -> LLM:
    return llm_on(backend, model)


def test_texts_are_those_of_the_reference(llm: LLM, reference: ReferenceModel, model: Path, case: Case) -> None:
    if (case.reference_error or 1) > 1e-3:
        pytest.skip("quantized activations may choose another token at a near tie")

    def logits(history: object) -> np.ndarray:
        return reference.logits(np.array(history, np.int32))[-1]

    wanted = llm_on(ScriptedBackend(logits, n_vocab=N_VOCAB, n_ctx=N_CTX), model)
    for settings in (SAMPLED, {**SAMPLED, "temperature": 0.0}, {**SAMPLED, "repeat_penalty": 1.3, "min_p": 0.02}):
        assert llm.generate(prompt(9), **settings).token_ids == wanted.generate(prompt(9), **settings).token_ids
    assert llm.chat(MESSAGES, **SAMPLED).text == wanted.chat(MESSAGES, **SAMPLED).text


def test_streams_join_to_the_whole(llm: LLM) -> None:
    whole = llm.chat(MESSAGES, **SAMPLED)
    deltas = list(llm.chat(MESSAGES, stream=True, **SAMPLED))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert whole.token_ids == llm.chat(MESSAGES, **SAMPLED).token_ids
    assert (whole.finish_reason, whole.n_generated) == ("length", 12)


def test_log_probabilities_are_those_of_the_logits(llm: LLM, case: Case) -> None:
    answer = llm.generate(prompt(9), logprobs=3, **SAMPLED)
    rows = llm.logits([*prompt(9), *answer.token_ids])[8:-1]
    logs = rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) - rows.max(1, keepdims=True)
    told = np.array([token.logprob for token in answer.logprobs or ()], np.float32)
    slack = 2 * case.own_error * np.abs(rows).max() + 1e-5
    assert np.abs(told - logs[np.arange(12), list(answer.token_ids)]).max() < slack
    assert all(len(token.top) == 3 for token in answer.logprobs or ())
    score = llm.score([*prompt(9), *answer.token_ids])
    assert abs(sum(score.logprobs[-12:]) - told.sum()) < 12 * slack


def test_embeddings_belong_to_the_text(llm: LLM, case: Case) -> None:
    if "hidden" not in llm.info.abilities:
        pytest.skip("the backend declares no hidden states")
    one, other = llm.embed("in the hen"), llm.embed("another")
    assert one.shape == (1, llm.info.n_embd)
    assert distance(llm.embed("in the hen"), one) < case.own_error
    assert distance(other, one) > 10 * case.own_error
