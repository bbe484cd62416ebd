"""Events are read whatever pieces their bytes come in."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.errors import CloudError
from edgelm.runtime.router import sse
from edgelm.runtime.router.sse import EventReader

STREAM = "data: größe\n\n: a comment\n\nevent: x\r\ndata:no space\r\n\r\ndata: two\rdata: lines\r\rid: 7\n\ndata: 😀\n\ndata: cut".encode()
EVENTS = ["größe", "no space", "two\nlines", "😀"]


def read(pieces: list[bytes]) -> list[str]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.push(piece)]


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_the_same_events_whereever_the_stream_is_cut(cut: int) -> None:
    assert read([STREAM[:cut], STREAM[cut:]]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_the_same_events_in_any_pieces(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    assert read([STREAM[a:b] for a, b in pairwise(places)]) == EVENTS


def test_an_event_without_its_blank_line_is_not_whole() -> None:
    assert read([b"data: a\n"]) == []


def test_bytes_that_are_no_utf8_are_an_error() -> None:
    with pytest.raises(CloudError, match="no UTF-8"):
        read([b"data: \xff\n\n"])


def test_an_event_without_end_is_an_error_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MOST_CHARACTERS", 1000)
    for piece in (b"x" * 100, b"data: xxxx\n" * 10):
        with pytest.raises(CloudError, match="more than 1,000"):
            read([piece] * 30)
