"""Signals: what they find in a conversation, that they name no subject, and that hostile text costs no more than any other."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.runtime.router import signals as module
from edgelm.runtime.router.language import language_of
from edgelm.runtime.router.signals import FEATURES, MAX_CHARACTERS, Signals, signals_of

CHOICE = "Which of the following is not a prime number?\nA. 2\nB. 9\nC. 11\nD. 13\nAnswer:"


def seen(content: Any, **more: Any) -> Signals:
    return signals_of([{"role": "user", "content": content}], **more)


def value(signals: Signals, name: str) -> float:
    return signals.of([name])[0]


def test_a_question_with_options() -> None:
    found = seen(CHOICE)
    assert found.format == "options"
    assert value(found, "option_numbers") == 1.0
    assert value(found, "words") == pytest.approx(math.log1p(9))  # of the question alone
    assert [value(found, name) for name in ("asks_choice", "negation", "asks_quantity", "code")] == [1, 1, 0, 0]


@pytest.mark.parametrize("text", ["(A) one\n(B) two", "A) one\nB) two", "Pick.\nA: one\nB: two\nC: three", "Pick\n  A. one\n  B. two"])
def test_options_are_known_however_they_are_written(text: str) -> None:
    assert seen(text).format == "options"


@pytest.mark.parametrize("text", ["A. Einstein was born where?", "B. one\nC. two", "Vitamin\nA. B. C", "What is a prime?", ""])
def test_what_gives_no_options_is_free(text: str) -> None:
    found = seen(text)
    assert found.format == "free"
    assert not any(value(found, name) for name in FEATURES if name.startswith("option"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("How many apples are left?", "asks_quantity"),
        ("Why is the sky blue?", "asks_reason"),
        ("Write a poem about rain.", "asks_writing"),
        ("Summarize the text below.", "asks_change"),
        ("Statement 1 | All is well. Statement 2 | All is lost.", "parts"),
        ("```\nx\n```", "code"),
        ("def double(x):\n    return 2 * x", "code"),
        ("It is not so.", "negation"),
    ],
)
def test_marks_are_found_where_they_are_and_nowhere_else(text: str, name: str) -> None:
    assert value(seen(text), name) == 1.0
    assert value(seen("Tell me something about rain."), name) == 0.0


def test_the_last_message_of_the_user_is_the_question_and_others_are_context() -> None:
    before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]
    found = signals_of([*before, {"role": "user", "content": CHOICE}])
    alone = seen(CHOICE)
    assert found.format == "options"
    assert found.n_turns == 3
    assert value(found, "context") == pytest.approx(math.log1p(len("Be brief.Hi")))
    assert found.of(["words", "option_length", "maths"]) == alone.of(["words", "option_length", "maths"])


def test_parts_are_joined_and_images_noticed() -> None:
    found = seen([{"type": "text", "text": "What is"}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "this?"}])
    assert found.has_images
    assert found.features[:3] == seen("What is\nthis?").features[:3]
    assert not seen("What is this?").has_images


def test_tools_and_a_count_of_tokens_are_taken_as_given() -> None:
    found = seen("What is the weather?", tools=[{"type": "function"}], n_prompt_tokens=123)
    assert found.wants_tools
    assert found.n_prompt_tokens == 123
    assert seen("x" * 400).n_prompt_tokens == 100
    assert not seen("What is the weather?", tools=[]).wants_tools


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("What is the capital of the country that lies to the north?", "en"),
        ("Was ist die Hauptstadt von dem Land, das im Norden liegt?", "de"),
        ("Quelle est la capitale du pays qui se trouve dans le nord ?", "fr"),
        ("¿Cuál es la capital del país que está en el norte?", "es"),
        ("Qual è la capitale del paese che si trova nel nord?", "it"),
        ("Qual é a capital do país que fica no norte e não no sul?", "pt"),
        ("Wat is de hoofdstad van het land dat in het noorden ligt?", "nl"),
        ("北方国家的首都是什么?", "zh"),
        ("北の国の首都は何ですか?", "ja"),
        ("북쪽 나라의 수도는 어디입니까?", "ko"),
        ("Как называется столица северной страны?", "und-Cyrl"),
        ("f(x) = x^2 + 1", "und"),
        ("Orlistat", "und"),
        ("", "und"),
    ],
)
def test_the_language_is_told_or_said_to_be_unknown(text: str, tag: str) -> None:
    assert language_of(text) == tag


def test_an_unknown_language_is_not_called_foreign() -> None:
    assert value(seen("x^2 = 4"), "foreign") == 0.0
    assert value(seen("Was ist die Hauptstadt von Frankreich und wie groß ist sie?"), "foreign") == 1.0


@given(st.text(max_size=300), st.lists(st.sampled_from(["A. ", "\nB. ", "1.1", ";", "\n\n", "'", "(", "def ", "…"]), max_size=30))
def test_features_of_any_text_are_finite(text: str, pieces: list[str]) -> None:
    found = seen("".join(pieces) + text)
    assert len(found.features) == len(FEATURES)
    assert all(map(math.isfinite, found.features))


def test_of_a_long_message_its_ends_are_looked_at_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def spy(look: Any) -> Any:
        return lambda text, *more: lengths.append(len(text)) or look(text, *more)

    for name in ("_split", "_of_question", "language_of"):
        monkeypatch.setattr(module, name, spy(getattr(module, name)))
    found = seen("word " * 1_000_000)
    assert len(lengths) == 3
    assert max(lengths) <= MAX_CHARACTERS + 1
    assert value(found, "words") == pytest.approx(math.log1p(1_000_000), rel=0.01)  # what was not looked at is counted by its length


@pytest.mark.parametrize("name", [name for name, value in vars(module).items() if isinstance(value, re.Pattern)])
def test_no_pattern_repeats_what_it_repeats(name: str) -> None:
    """A repetition without a bound may not hold another one, nor be followed by a condition on which it could go back over its length."""
    pattern = getattr(module, name).pattern
    assert not re.search(r"[+*][^()|\[\]]*\)[+*]", pattern.replace(r"(?:[.,]\d+)*", "").replace(r"(?:'[^\W\d_]+)?", ""))
    assert not re.search(r"[+*]\(\?[=!]", pattern)


def test_every_feature_has_words_and_a_reason() -> None:
    assert all(feature.much != feature.little and feature.reason for feature in FEATURES.values())
