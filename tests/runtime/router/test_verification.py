"""A model's own opinion of its answer: read from the probabilities of yes and no, and None where there are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from math import log

import numpy as np
import pytest
from byte_model import byte_metadata
from numpy.typing import NDArray

from edgelm.backends.scripted import ScriptedBackend
from edgelm.errors import DeadlineError
from edgelm.runtime.chat_model import Asker, ChatRequest, Event, Events, TextDelta
from edgelm.runtime.llm import LLM
from edgelm.runtime.local_model import LocalModel
from edgelm.runtime.results import TopToken
from edgelm.runtime.router.verification import QUESTION, probability_of_yes, self_verification
from edgelm.runtime.sampling import SamplingParams
from edgelm.runtime.tokenizer import Tokenizer

YES, NO, END = 258, 259, 256
REQUEST = ChatRequest([{"role": "user", "content": "What is 3 + 4?"}], SamplingParams(max_tokens=9, seed=3), n=4)
Ask = Callable[..., float | None]


def top(*tokens: tuple[str, float]) -> list[TopToken]:
    return [TopToken(i, token, log(p)) for i, (token, p) in enumerate(tokens)]


@pytest.mark.parametrize(
    ("tokens", "p"),
    [
        (top(("yes", 0.6), ("no", 0.2), ("maybe", 0.1)), 0.75),
        (top((" Yes", 0.3), ("YES", 0.2), ("yes", 0.1), ("No", 0.15), (" no", 0.05)), 0.75),
        (top(("Well", 0.5), ("no", 0.3), ("yes", 0.1)), 0.25),
        (top(("yes", 0.8), ("maybe", 0.15), ("who", 0.05)), 0.8 / 0.85),  # no has 0.05 at most
        (top(("no", 0.8), ("maybe", 0.2)), 0.2),
        (top(("yesterday", 0.6), ("nothing", 0.2)), None),
        ([], None),
    ],
)
def test_the_probability_of_yes(tokens: Sequence[TopToken], p: float | None) -> None:
    assert probability_of_yes(tokens) == (None if p is None else pytest.approx(p))


def logits(**of: float) -> NDArray[np.float32]:
    tokens = {"yes": YES, "no": NO, "end": END, "other": ord("x")}
    row = np.full(260, -20.0, np.float32)
    for name, logit in of.items():
        row[tokens[name]] = logit
    return row


@pytest.fixture
def ask() -> Iterator[Ask]:
    """Asks a model that knows the words, and says the logits; afterwards nothing is computed, and every sequence was freed."""
    asked: list[tuple[LocalModel, ScriptedBackend]] = []

    def ask_once(row: NDArray[np.float32], n_ctx: int = 512, timeout_s: float | None = None, seen: list[str] | None = None) -> float | None:
        def script(history: Sequence[int]) -> NDArray[np.float32]:
            if seen is not None:
                seen.append(bytes(token for token in history if token < 256).decode())
            return row

        metadata = byte_metadata()
        metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "Yes", "no"]
        metadata["tokenizer.ggml.token_type"] = np.array([1] * 256 + [3, 3, 1, 1], np.int32)
        backend = ScriptedBackend(script, n_vocab=260, n_ctx=n_ctx)
        model = LocalModel(LLM.from_parts(backend, Tokenizer.from_metadata(metadata), metadata))
        asked.append((model, backend))
        return asyncio.run(self_verification(model, REQUEST, "It is 7.", Asker("ann", timeout_s)))

    yield ask_once
    for model, backend in asked:
        model.close()
        assert not backend.sequences


def test_the_model_is_asked_once_for_one_token_after_the_conversation(ask: Ask) -> None:
    seen: list[str] = []
    assert ask(logits(yes=log(0.9), no=log(0.3)), seen=seen) == pytest.approx(0.75)
    assert len(seen) == 1
    assert seen[0].endswith(f"user:What is 3 + 4?\nassistant:It is 7.\nuser:{QUESTION}\nassistant:")


def test_the_raw_probabilities_count_and_not_what_was_drawn(ask: Ask) -> None:
    assert ask(logits(other=5.0, yes=log(0.1), no=log(0.3))) == pytest.approx(0.25)


def test_a_model_that_says_nothing_has_no_opinion(ask: Ask) -> None:
    assert ask(logits(end=5.0, yes=0.0)) is None


def test_where_there_is_no_room_for_the_question_there_is_no_opinion(ask: Ask) -> None:
    assert ask(logits(yes=0.0), n_ctx=40) is None


def test_errors_are_the_callers(ask: Ask) -> None:
    with pytest.raises(DeadlineError):
        ask(logits(yes=0.0), timeout_s=-1.0)


class _Open:
    """Says something without log probabilities, and perhaps fails. n_open: events that were not closed."""

    def __init__(self, error: Exception | None) -> None:
        self.n_open = 0
        self.error = error

    async def chat(self, request: ChatRequest, asker: Asker) -> Events:
        assert (request.n, asker.client) == (1, "ann")
        self.n_open += 1
        return Events(self._events(), self._release)

    def _release(self) -> None:
        self.n_open -= 1

    async def _events(self) -> AsyncIterator[Event]:
        yield TextDelta(0, "yes")
        if self.error is not None:
            raise self.error


def test_a_model_without_log_probabilities_has_no_opinion() -> None:
    model = _Open(None)
    assert asyncio.run(self_verification(model, REQUEST, "It is 7.", Asker("ann"))) is None
    assert model.n_open == 0


def test_nothing_stays_open_after_an_error() -> None:
    model = _Open(DeadlineError("late"))
    with pytest.raises(DeadlineError, match="late"):
        asyncio.run(self_verification(model, REQUEST, "It is 7.", Asker("ann")))
    assert model.n_open == 0
