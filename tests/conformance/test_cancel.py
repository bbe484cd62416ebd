"""Whoever no longer wants an answer gets the engine's time and place back."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import numpy as np
import pytest
from conformance.cases import N_CTX
from conformance.sequences import prompt

from edgelm.backends.base import Backend, Batch, ModelInfo
from edgelm.quant.open_model import open_model
from edgelm.runtime.llm import LLM
from edgelm.runtime.tokenizer import Tokenizer


class Counted:
    """A backend that counts the tokens computed and sequences held, and may do something before each call."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.n_tokens = 0
        self.before = lambda: None
        self.sequences: set[int] = set()

    @property
    def info(self) -> ModelInfo:
        return self._backend.info

    def forward(self, batch: Batch) -> np.ndarray:
        self.before()
        self.n_tokens += sum(len(chunk.tokens) for chunk in batch)
        self.sequences |= {chunk.sequence for chunk in batch}
        return self._backend.forward(batch)

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)


@pytest.fixture
def counted(backend: Backend) -> Counted:
    return Counted(backend)


@pytest.fixture
def llm(counted: Counted, model: Path) -> LLM:
    metadata = open_model(model).metadata
    return LLM.from_parts(counted, Tokenizer.from_metadata(metadata), metadata)  # type: ignore[arg-type]


def test_before_the_prompt(llm: LLM, counted: Counted) -> None:
    cancelled = Event()
    cancelled.set()
    answer = llm.generate(prompt(20), cancelled=cancelled)
    assert (answer.finish_reason, counted.n_tokens) == ("cancelled", 0)


def test_within_the_prompt(llm: LLM, counted: Counted) -> None:
    cancelled = Event()
    counted.before = cancelled.set
    assert llm.generate(prompt(N_CTX - 1), cancelled=cancelled).finish_reason == "cancelled"
    assert 0 < counted.n_tokens < N_CTX - 1
    assert [counted.length(sequence) for sequence in counted.sequences] == [0]


def test_within_the_answer(llm: LLM, counted: Counted) -> None:
    cancelled = Event()
    seen = []
    for delta in llm.generate(prompt(5), stream=True, cancelled=cancelled, temperature=0, ignore_eos=True):
        seen.append(delta)
        if len(seen) == 3:
            cancelled.set()
    assert (seen[-1].finish_reason, sum(len(delta.token_ids) for delta in seen)) == ("cancelled", 3)
    assert [counted.length(sequence) for sequence in counted.sequences] == [0]


def test_a_stream_that_is_closed(llm: LLM, counted: Counted) -> None:
    stream = llm.generate(prompt(5), stream=True, temperature=0, ignore_eos=True)
    next(stream)
    next(stream)
    held = [counted.length(sequence) for sequence in counted.sequences]
    stream.close()
    assert held[0] > 0
    assert [counted.length(sequence) for sequence in counted.sequences] == [0]
