"""What answers come down to: the same however they are written, different where they differ, nothing where there is nothing to compare."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.runtime.router.answers import calls_answer, final_answer
from edgelm.runtime.tool_calls import CallPiece

ESSAY = "Rome was not built in a day. " * 30 + "It fell in 476."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1,000", "1000"),
        ("1000.0", "1000"),
        ("$1,000.00", "1000"),
        ("**1000**.", "1000"),
        ("1000 dollars", "1000"),
        ("-5", "-5"),
        ("\N{MINUS SIGN}5", "-5"),
        ("-$5", "-5"),
        ("50%", "50"),
        ("50 %", "50"),
        (r"50\%", "50"),
        ("0.5", "1/2"),
        (".5", "1/2"),
        ("2/4", "1/2"),
        ("1 / 2", "1/2"),
        ("1 1/2", "3/2"),
        ("-1 1/2", "-3/2"),
        ("5cm", "5"),
        ("5 cm", "5"),
        (r"$\frac{3}{6}$", "1/2"),
        (r"\dfrac{3}{6}", "1/2"),
        ("1/0", "1/0"),
        ("-0.0", "0"),
    ],
)
def test_numbers(text: str, answer: str) -> None:
    assert final_answer(text) == answer
    assert final_answer(f"Let me see. The answer is {text}") == answer
    assert final_answer(f"#### {text}") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"First 3, then \boxed{4}, no: \boxed{\frac{1}{2}}. So 12 it is not.", "1/2"),
        (r"$$\boxed{\text{Oslo}}$$", "oslo"),
        (r"\boxed{x = 7}", "7"),
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 3\nNo.\n#### 7", "7"),
        ("The answer is 7.", "7"),
        ("So the final answer is: **7**", "7"),
        ("**Answer:** 7", "7"),
        ("**Final answer**\n\n7", "7"),
        ("The answer to the question of Ann is 7 apples. She ate 3.", "7"),
        ("The answer is 3. Wait. The answer is 7.", "7"),
        ("The answer is $x = 7$.", "7"),
        ("The answer is 3 + 4 = 7.", "7"),
        ("Answer: Oslo", "oslo"),
        ("The answer is \N{LEFT DOUBLE QUOTATION MARK}Oslo\N{RIGHT DOUBLE QUOTATION MARK}, I think.", "oslo i think"),
        ("<think>The answer is 3.</think>The answer is 7.", "7"),
    ],
)
def test_marked_answers(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("B", "B"),
        ("b)", "B"),
        ("(B)", "B"),
        ("(b) Oslo", "B"),
        ("B. Oslo", "B"),
        ("B: Oslo", "B"),
        ("Option B", "B"),
        ("**B**", "B"),
        ("The answer is (B) because Oslo is in Norway.", "B"),
        ("The correct answer is B because Oslo is in Norway.", "B"),
        ("Yes, for 5 is prime.", "yes"),
        ("No.", "no"),
        ("TRUE", "true"),
        ("Yes. " + ESSAY, "yes"),
    ],
)
def test_choices(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The Oslo.", "oslo"),
        ('"Oslo!"', "oslo"),
        ("George  Washington", "george washington"),
        ("No one knows", "no one knows"),
        ("Apollo 11", "apollo 11"),
        ("1, 2, 3", "1 2 3"),
        ("1,2,3", "1 2 3"),
        ("12:30", "12:30"),
        ("3 p.m.", "3pm"),
        ("2024-05-03", "2024-05-03"),
    ],
)
def test_short_answers(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A, B", "A, C"),
        ("A, B", "B"),
        ("57 is prime.", "57 is not prime."),
        ("57 isn't prime.", "57 is prime."),
        ("x <= 5", "x >= 5"),
        ("x = -5 or x = 5", "x = 5"),
        ("3 pm", "3 am"),
        ("It leaves at about 3 pm.", "It leaves at about 3 am."),
        ("2**3", "23"),
        ("1.5", "15"),
        ("-5", "5"),
        ("1/2", "12"),
        ("E. coli", "E. faecalis"),
        ("2024-05-03", "2024-06-03"),
        ("50%", "0.5"),
        ('{"a": 1}', '{"a": "1"}'),
        ('{"a": true}', '{"a": 1}'),
        ("[1, 2]", "[2, 1]"),
    ],
)
def test_answers_that_differ_stay_apart(one: str, other: str) -> None:
    assert final_answer(one) != final_answer(other)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("There are 24 apples.", "24"),
        ("11 - 6 is 5.", "5"),
        ("3 times 4 equals 12", "12"),
        ("Ann has 3 apples and Bob has 4 apples, which together makes 7.", "7"),
        ("Ann has apples and pears. " * 20 + "In all she has 3 + 4 = 7 fruits.", "7"),
        ("First 3 + 4 = 7.\nThen 7 * 2 = 14, so that all of them together are 14 in the end.", "14"),
    ],
)
def test_the_last_number_of_a_calculation(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"b": 1.0, "a": [2, {"c": null}]}', '{"a":[2,{"c":null}],"b":1}'),
        ('```json\n{"a": 1}\n```', '{"a":1}'),
        ('{"why": "as 3 + 4 is 7", "answer": 7}', "7"),
        ('{"final_answer": "The Oslo"}', "oslo"),
        ("[]", "[]"),
    ],
)
def test_json(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        ESSAY,
        "A. Introduction\n" + ESSAY,
        "<think>The answer is 7",
        "Here it is:\n```python\nprint(3 + 4)\n```\nIt prints 7.",
        "Roses are red and violets are blue, and so on it goes with the poem.",
        "The answer is that all of this depends on many things of which nobody can be quite sure.",
        r"\boxed{7",
        '{"a": NaN}' + ESSAY,
        "[" * 100_000,
        "Since the number has no divisors at all but one and itself, we see that 57 is not prime.",
    ],
)
def test_nothing_that_can_be_compared(text: str) -> None:
    assert final_answer(text) is None


@given(st.integers(-(10**12), 10**12))
def test_every_way_to_write_a_whole_number(number: int) -> None:
    numbers = [f"{number}", f"{number:,}", f"{number}.0", f"{number:,} apples"]
    ways = [*numbers, f"The answer is **{number:,}**.", rf"\boxed{{{number}}}", f'{{"answer": {number}}}']
    assert {final_answer(way) for way in ways} == {str(number)}


@given(st.text())
def test_any_text_gives_an_answer_or_none(text: str) -> None:
    for each in (text, f"The answer is {text}", f"\\boxed{{{text}}}"):
        assert final_answer(each) != ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda key: "answer" not in key), JSON, max_size=4))
def test_json_is_the_same_in_any_order_and_with_any_space(value: dict[str, Any]) -> None:
    other = json.dumps(dict(reversed(value.items())), indent=3)
    assert final_answer(json.dumps(value)) == final_answer(other) is not None


def call(name: str, arguments: str, index: int = 0) -> CallPiece:
    return CallPiece(index, arguments, "call_x", name)


def test_calls_are_the_same_in_any_order() -> None:
    one = [call("weather", '{"city": "Oslo", "days": 2}'), call("time", "{}", 1)]
    other = [call("time", "{ }"), call("weather", '{"days": 2.0, "city": "Oslo"}', 1)]
    assert calls_answer(one) == calls_answer(other) == 'time({})\nweather({"city":"Oslo","days":2})'


@pytest.mark.parametrize("changed", [call("weather", '{"city": "Bergen"}'), call("time", '{"city": "Oslo"}')])
def test_calls_that_differ_stay_apart(changed: CallPiece) -> None:
    assert calls_answer([changed]) != calls_answer([call("weather", '{"city": "Oslo"}')])


@pytest.mark.parametrize("calls", [[], [call("weather", '{"city": ')], [call("weather", "[" * 100_000)]])
def test_calls_without_sound_arguments_are_no_answer(calls: list[CallPiece]) -> None:
    assert calls_answer(calls) is None
