"""Sequences in numbered places."""

from __future__ import annotations

import pytest

from edgelm.backends.slots import Slots
from edgelm.errors import InvalidRequestError


def test_the_lowest_free_slot_is_claimed() -> None:
    slots = Slots()
    assert [slots.claim(sequence).index for sequence in (70, 5, 9, 5)] == [0, 1, 2, 1]
    slots.release(5)
    assert (len(slots), slots.n_spanned) == (2, 3)
    assert slots.claim(6).index == 1
    slots.release(9)
    slots.release(9)
    assert slots.n_spanned == 2


def test_lengths_are_kept_by_sequence() -> None:
    slots = Slots()
    slots.claim(70).length = 4
    assert [slots.length(sequence) for sequence in (70, 71)] == [4, 0]
    slots.clear()
    assert slots.length(70) == 0


def test_what_cannot_be_shared_or_truncated() -> None:
    slots = Slots()
    slots.claim(1).length = 4
    slots.check_share(1, 2, 4)
    slots.check_truncate(1, 0)
    for wrong in (lambda: slots.check_share(1, 2, 5), lambda: slots.check_share(1, 1, 2), lambda: slots.check_share(3, 2, 1)):
        with pytest.raises(InvalidRequestError):
            wrong()
    for n_tokens in (5, -1):
        with pytest.raises(InvalidRequestError):
            slots.check_truncate(1, n_tokens)
