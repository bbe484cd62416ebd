"""What may be shown of a text that is not finished."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.runtime.text_stream import TextStream


def shown(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], str, str | None]:
    stream = TextStream(stop)
    deltas = [stream.push(piece) for piece in pieces]
    return deltas, stream.finish(), stream.stopped_by


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def test_incomplete_characters_are_held_back() -> None:
    deltas, rest, _ = shown([b"a\xf0\x9f", b"\x8e", b"\x89b"])
    assert (deltas, rest) == (["a", "", "🎉b"], "")


def test_a_character_cut_off_by_the_end_becomes_a_replacement() -> None:
    assert shown([b"ok\xe2\x82"]) == (["ok"], "�", None)


def test_nothing_of_a_stop_string_leaks() -> None:
    deltas, rest, stopped = shown([b"Hello <|", b"im_e", b"nd|> more"], ("<|im_end|>",))
    assert (deltas, rest, stopped) == (["Hello ", "", ""], "", "<|im_end|>")


def test_a_false_alarm_is_released() -> None:
    deltas, rest, stopped = shown([b"a<", b"b<", b"|"], ("<|x",))
    assert (deltas, rest, stopped) == (["a", "<b", ""], "<|", None)


def test_text_after_the_stop_is_ignored() -> None:
    stream = TextStream(("X",))
    assert stream.push(b"abXcd") == "ab"
    assert stream.push(b"ef") == ""
    assert stream.finish() == ""


def test_the_stop_string_that_is_complete_first_counts() -> None:
    assert shown([b"abcdef"], ("bcdef", "cd"))[::2] == (["ab"], "cd")
    assert shown([b"abcdef"], ("cd", "bcd"))[::2] == (["a"], "bcd")


@pytest.mark.parametrize("stop", ["aab", "é€", "ab", "\n\n"])
@given(text=st.text(alphabet="aab€é\n🎉"), places=st.lists(st.integers(0, 400), max_size=8))
def test_any_cutting_gives_the_text_up_to_the_stop(stop: str, text: str, places: list[int]) -> None:
    deltas, rest, stopped = shown(cut(text.encode(), places), (stop,))
    assert "".join(deltas) + rest == text.partition(stop)[0]
    assert (stopped is not None) == (stop in text)


@given(data=st.binary(max_size=60), places=st.lists(st.integers(0, 60), max_size=6))
def test_any_bytes_decode_as_the_whole_would(data: bytes, places: list[int]) -> None:
    deltas, rest, _ = shown(cut(data, places))
    assert "".join(deltas) + rest == data.decode("utf-8", errors="replace")


@given(text=st.text(alphabet="ab", max_size=12), stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_cutting_never_decides_between_stop_strings(text: str, stops: list[str]) -> None:
    whole = shown([text.encode()], tuple(stops))
    single = shown([char.encode() for char in text], tuple(stops))
    assert "".join(whole[0]) + whole[1] == "".join(single[0]) + single[1]
    assert whole[2] == single[2]
