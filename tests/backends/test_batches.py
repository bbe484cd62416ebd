"""Which batches are refused, and with what."""

from __future__ import annotations

import numpy as np
import pytest

from edgelm.backends.base import Chunk
from edgelm.backends.batches import check_batch
from edgelm.errors import ContextOverflowError, InvalidRequestError


def check(*chunks: tuple[int, object]) -> None:
    lengths = {1: 6}
    check_batch([Chunk(sequence, np.array(tokens)) for sequence, tokens in chunks], 10, 8, lambda sequence: lengths.get(sequence, 0))


def test_sound_batches_pass() -> None:
    check()
    check((1, [0, 9]), (2, [1] * 8))


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([(1, [1]), (1, [2])], "comes twice"),
        ([(3, np.zeros(0, np.int32))], r"sequence 3 has tokens of shape \(0,\)"),
        ([(3, [[1]])], r"shape \(1, 1\)"),
        ([(3, [10])], "token 10 is not in the vocabulary of 10"),
        ([(3, [-1])], "token -1"),
    ],
)
def test_senseless_batches_are_refused(chunks: list[tuple[int, object]], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        check(*chunks)


def test_overflow_says_both_numbers() -> None:
    with pytest.raises(ContextOverflowError) as caught:
        check((2, [1]), (1, [1, 2, 3]))
    assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (9, 8)
