"""Server-sent events: the same ones, however the bytes arrive."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.bench.load.events import BadAnswerError, Event, EventDecoder

_STREAM = (
    b': comment\n\ndata: {"a": 1}\n\nevent: error\r\ndata: no\r\n\r\n'
    b"data:first\ndata: second\nid: 7\n\n\n\ndata: \xe2\x80\xa8\n\ndata: [DONE]\n"
)
_EVENTS = [
    Event("message", b'{"a": 1}'),
    Event("error", b"no"),
    Event("message", b"first\nsecond"),
    Event("message", b"\xe2\x80\xa8"),
    Event("message", b"[DONE]"),
]


@given(st.lists(st.integers(0, len(_STREAM)), max_size=12))
def test_any_cut_gives_the_same_events(cuts: list[int]) -> None:
    decoder, found = EventDecoder(), []
    borders = [0, *sorted(cuts), len(_STREAM)]
    for start, end in pairwise(borders):
        found += decoder.feed(_STREAM[start:end])
    found += decoder.end()
    assert found == _EVENTS


def test_an_event_is_there_with_its_last_byte() -> None:
    decoder = EventDecoder()
    assert list(decoder.feed(b"data: x\n")) == []
    assert list(decoder.feed(b"\n")) == [Event("message", b"x")]


def test_half_an_event_is_none() -> None:
    decoder = EventDecoder()
    assert [*decoder.feed(b'data: {"choi'), *decoder.end()] == []


@pytest.mark.parametrize("received", [b"x" * (2 << 20), b"data: xxxxxxxxxxxxxxxx\n" * (1 << 17)])
def test_memory_is_bounded(received: bytes) -> None:
    decoder = EventDecoder()
    with pytest.raises(BadAnswerError, match="without an end"):
        list(chain.from_iterable(decoder.feed(part) for part in (received, received)))
