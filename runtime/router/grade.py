"""Whether an answer is right, where what is right is known beforehand."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Literal, cast, get_args

from edgelm.errors import InvalidRequestError

Grader = Literal["exact", "number", "choice", "contains"]
"""exact: the same words and no others. number: the last number is it. choice: of all choices, the answer begins with it, or names it last.
contains: the words are somewhere in the answer."""

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+")
_AFTER_DIGIT = re.compile(r"(?<=\d)-(?=\d)")


def check_grader(name: str, answer: str, choices: Sequence[str]) -> Grader:
    """The grader of this name, if it can grade such answers.

    Raises:
        InvalidRequestError: there is no such grader, or what is right makes no sense for it.
    """
    if name not in get_args(Grader):
        raise InvalidRequestError(f"there is no grader {name!r}; there are {', '.join(get_args(Grader))}")
    if not normalized(answer):
        raise InvalidRequestError(f"the answer is {answer!r}, in which there are no words to look for")
    if name == "number" and last_number(answer) is None:
        raise InvalidRequestError(f"the answer is {answer!r}, which holds no number for the grader 'number'")
    if name == "choice":
        names = [_folded(choice) for choice in choices]
        if len(names) < 2 or not all(names) or len(set(names)) < len(names):
            raise InvalidRequestError("the grader 'choice' needs at least two different \"choices\"")
        if _folded(answer) not in names:
            raise InvalidRequestError(f"the answer {answer!r} is none of the choices {', '.join(choices)}")
    return cast(Grader, name)


def is_right(grader: Grader, text: str, answer: str, choices: Sequence[str] = ()) -> bool:
    """Whether a text gives the answer.

    Args:
        choices: of which the answer is one, for the grader "choice".
    """
    return _GRADERS[grader](text, answer, choices)


def normalized(text: str) -> str:
    """Words in lower case with single spaces, without accents and punctuation around them."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(letter))
    words = (re.sub(r"^[^\w+-]+|[^\w%]+$", "", word) for word in plain.split())
    return " ".join(word for word in words if word)


def last_number(text: str) -> Fraction | None:
    """The last number of a text, exactly; None where there is none. Commas may part thousands; a hyphen after a digit is no sign."""
    found = _NUMBER.findall(_AFTER_DIGIT.sub(" ", text))
    return Fraction(found[-1].replace(",", "")) if found else None


def _exact(text: str, answer: str, _: Sequence[str]) -> bool:
    return _without_article(text) == _without_article(answer)


def _without_article(text: str) -> str:
    words = normalized(text)
    return re.sub(r"^(a|an|the) (?=.)", "", words)


def _number(text: str, answer: str, _: Sequence[str]) -> bool:
    found = last_number(text)
    return found is not None and found == last_number(answer)


def _contains(text: str, answer: str, _: Sequence[str]) -> bool:
    return f" {normalized(answer)} " in f" {normalized(text)} "


def _choice(text: str, answer: str, choices: Sequence[str]) -> bool:
    """An answer that begins with a choice has made it, and explains it afterwards; else the one named last counts."""
    said = [(m.start(), choice) for choice in choices for m in _named(choice).finditer(text)]
    if not said:
        return False
    beginning = len(text) - len(text.lstrip(" \n\t*_#\"'`([{"))
    place, first = min(said, key=lambda each: (each[0], -len(each[1])))
    chosen = first if place <= beginning else max(said, key=lambda each: (each[0] + len(each[1]), len(each[1])))[1]
    return _folded(chosen) == _folded(answer)


def _named(choice: str) -> re.Pattern[str]:
    """Where a text names a choice, as a word of its own; a single letter is a capital one, and not the article."""
    if len(choice.strip()) == 1 and choice.strip().isalpha():
        return re.compile(rf"(?<![\w'’]){re.escape(choice.strip().upper())}(?![\w'’])(?!\s+[a-z])")
    return re.compile(rf"(?<![\w'’]){re.escape(choice.strip())}(?![\w'’])", re.IGNORECASE)


def _folded(text: str) -> str:
    return text.strip().casefold()


_GRADERS: Mapping[Grader, Callable[[str, str, Sequence[str]], bool]] = MappingProxyType(
    {"exact": _exact, "number": _number, "choice": _choice, "contains": _contains}
)
