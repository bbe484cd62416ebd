"""Graders: what counts as right, and what must not."""

from __future__ import annotations

from fractions import Fraction

import pytest

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.grade import Grader, check_grader, is_right, last_number


@pytest.mark.parametrize(
    ("grader", "text", "answer", "right"),
    [
        ("exact", " The Cat.\n", "cat", True),
        ("exact", "**cats**", "cats", True),
        ("exact", "cats and dogs", "cats", False),
        ("exact", "Bogota", "Bogotá", True),
        ("exact", "A", "a", True),
        ("exact", "the a cat", "a cat", False),
        ("exact", "-3", "3", False),
        ("contains", 'It begins with "A".', "a", True),
        ("number", "3 + 4 = 7", "7", True),
        ("number", "7 is 3 + 4", "7", False),
        ("number", "It is 1,234.50.", "1234.5", True),
        ("number", "12", "1", False),
        ("number", "none", "0", False),
        ("number", "the sum is -5", "5", False),
        ("number", "5-3", "3", True),
        ("contains", "The capital of France is Paris.", "Paris", True),
        ("contains", "Parisians", "Paris", False),
        ("contains", "3, 7, 12", "7, 12", True),
        ("contains", "3, 7, 120", "7, 12", False),
    ],
)
def test_graders(grader: Grader, text: str, answer: str, right: bool) -> None:
    assert is_right(grader, text, answer) is right


@pytest.mark.parametrize(
    ("text", "choices", "chosen"),
    [
        ("B", "A B C", "B"),
        ("(B) an apple", "A B C", "B"),
        ("**C** is right, while A and B are not.", "A B C", "C"),
        ("The answer is B.", "A B C", "B"),
        ("A banana is a fruit, so the answer is C", "A B C", "C"),
        ("It could be A, but it is B", "A B C", "B"),
        ("an apple", "A B C", None),
        ("Yes, 4 is even.", "yes no", "yes"),
        ("4 is even, so yes", "yes no", "yes"),
        ("I do not know now", "yes no", None),
        ("New York is large", "York, New York", "New York"),
        ("", "yes no", None),
    ],
)
def test_which_choice_is_made(text: str, choices: str, chosen: str | None) -> None:
    listed = choices.split(", ") if "," in choices else choices.split()
    assert [choice for choice in listed if is_right("choice", text, choice, listed)] == ([chosen] if chosen else [])


def test_last_number_is_exact() -> None:
    assert last_number("0.1 and 0.30") == Fraction(3, 10)
    assert last_number("1,234,567") == 1234567
    assert last_number("1,2") == 2  # no thousands: two numbers
    assert last_number(".5") == Fraction(1, 2)
    assert last_number("٣") == 3
    assert last_number("no") is None


@pytest.mark.parametrize(
    ("name", "answer", "choices", "says"),
    [
        ("fuzzy", "x", [], "there is no grader 'fuzzy'; there are exact, number, choice, contains"),
        ("exact", " ", [], "no words"),
        ("number", "seven", [], "holds no number"),
        ("choice", "A", ["A"], "at least two different"),
        ("choice", "A", ["A", "a"], "at least two different"),
        ("choice", "D", ["A", "B"], "none of the choices A, B"),
    ],
)
def test_what_cannot_be_graded_is_refused(name: str, answer: str, choices: list[str], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        check_grader(name, answer, choices)


def test_graders_that_are_sound_are_given_back() -> None:
    assert check_grader("choice", "a", ["A", "B"]) == "choice"
