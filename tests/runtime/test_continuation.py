"""From rows of logits to what is said, without any engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from edgelm.errors import ContextOverflowError
from edgelm.runtime.continuation import Continuation
from edgelm.runtime.results import Delta
from edgelm.runtime.sampling import SamplingParams

END = 256


class Bytes:
    """Token = byte, and an end."""

    eog_ids = frozenset({END})

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < END else b""


def row(token: int) -> NDArray[np.float32]:
    logits = np.zeros(257, np.float32)
    logits[token] = 20
    return logits


def deltas(text: Continuation, said: Sequence[int]) -> Iterator[Delta]:
    for token in said:
        delta = text.advance(row(token))
        yield delta
        if delta.finish_reason is not None:
            return


def continuation(prompt: bytes = b"hi", n_ctx: int = 100, **params: object) -> Continuation:
    return Continuation(Bytes(), list(prompt), SamplingParams(temperature=0, **params), n_ctx)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "said", "text", "reason"),
    [
        ({}, b"abc", "abc", "stop"),
        ({"max_tokens": 2}, b"abc", "ab", "length"),
        ({"stop": "b"}, b"abc", "a", "stop"),
        ({"stop": "cd"}, b"abc", "abc", "stop"),
        ({"ignore_eos": True, "max_tokens": 3}, b"abc", "abc", "length"),
    ],
)
def test_how_it_ends(params: dict[str, object], said: bytes, text: str, reason: str) -> None:
    heard = list(deltas(continuation(**params), [*said, END]))
    assert "".join(delta.text for delta in heard) == text
    assert [delta.finish_reason for delta in heard] == [None] * (len(heard) - 1) + [reason]
    assert heard[-1].timings is not None


def test_the_context_ends_it_with_one_token_beyond() -> None:
    text = continuation(b"12345678", n_ctx=10)
    heard = list(deltas(text, b"abcdefgh"))
    assert "".join(delta.text for delta in heard) == "abc"  # the last need not be appended
    assert heard[-1].finish_reason == "length"
    assert len(text.history) == 11


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    continuation(b"x" * 10, n_ctx=10)
    with pytest.raises(ContextOverflowError):
        continuation(b"x" * 11, n_ctx=10)


def test_a_letter_of_several_tokens_comes_whole() -> None:
    heard = [delta.text for delta in deltas(continuation(), [*"é".encode(), END])]
    assert heard == ["", "é", ""]


def test_the_history_is_what_an_engine_must_hold() -> None:
    text = continuation()
    list(deltas(text, [*b"ab", END]))
    assert bytes(text.history) == b"hiab"
    assert text.n_prompt == 2


def test_log_probabilities_are_of_the_token_and_its_rivals() -> None:
    text = continuation(logprobs=2)
    (delta,) = deltas(text, b"a")
    assert delta.logprobs is not None
    (told,) = delta.logprobs
    assert (told.token, told.top[0].token) == ("a", "a")
    assert told.logprob == pytest.approx(-256 * np.exp(-20), rel=1e-3)
    assert len(told.top) == 2


def test_one_that_nobody_wants_says_so() -> None:
    text = continuation()
    text.advance(row(ord("a")))
    assert text.cancel().finish_reason == "cancelled"
