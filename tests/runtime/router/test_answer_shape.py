"""The look of an answer as numbers."""

from __future__ import annotations

import math

import pytest

from edgelm.runtime.router.answer_shape import MOST_CHARACTERS, SHAPE, shape_of


def named(text: str) -> dict[str, float]:
    return dict(zip(SHAPE, shape_of(text).tolist(), strict=True))


def test_counts() -> None:
    found = named("It is 3.5 km. Is it far? Yes")
    assert found["words"] == pytest.approx(math.log(1 + 9))
    assert found["sentences"] == pytest.approx(math.log(1 + 2))
    assert found["digits"] == 1


def test_going_round_in_circles_is_repetition() -> None:
    assert named("one two three four five six")["repetition"] == 0
    assert named("la femme au roi, " * 20)["repetition"] == pytest.approx(1 - 4 / 78)


@pytest.mark.parametrize("text", ["", "word", "two words", "...", "\x00\ud800" * 10, "a" * 1_000_000, "a " * 1_000_000])
def test_any_text_has_a_finite_shape(text: str) -> None:
    assert all(math.isfinite(value) for value in shape_of(text))
    assert named(text)["words"] <= math.log1p(MOST_CHARACTERS)
