"""What an answer comes down to, so that answers written differently can be counted as the same one.

A text may say its answer in many ways. What is looked for, in this order:

    JSON, whole or in the only block of code       {"answer": 7}
    LaTeX's box                                    so it is \\boxed{7}
    GSM8K's mark                                   #### 7
    a phrase                                       The final answer is 7.
    a choice, yes or no at the beginning           (B) Oslo       Yes, because ...
    a short text                                   Oslo
    the last number of a calculation               3 + 4 = 7, so Ann has 7 apples.

Units are not compared, and a sentence of more than three words with a number in it comes down to the number, as is usual where answers
are counted. Otherwise two answers that differ must not become one; those that are the same may stay apart where telling would need
knowledge of the question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NoReturn

from edgelm.runtime.tool_calls import CallPiece

_MOST_WORDS = 8
"""Of a short answer: longer ones are seldom said twice in the same words."""
_MOST_WORDS_OF_NUMBER = 40
"""Of a text without any calculation whose last number is its answer; a longer one tells of many things."""

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_BLOCK = re.compile(r"```[ \t]*\w*[ \t]*\n(.*?)```", re.DOTALL)
_MARKED = re.compile(r"(?m)^####[ \t]*(\S.*)$")
_PHRASE = re.compile(r"\banswer\b(?:[^.\n:=]{0,40}?(?:\bis\b|[:=])|[*_ ]{0,8}\n)[\s*_:]{0,8}", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])[*_\"')]{0,4}\s+|\n+")
_CALCULATION = re.compile(r"\d\s*(?:[+*×÷]|\\times|\\cdot)\s*\d|\d\s+[-/]\s+\d|=\s*\$?-?\d")

_CHOICE = re.compile(
    r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?"
    r"(?:\(([A-Ha-h])\)|([A-Ha-h])\)|([A-D])[.:](?=\s|$)|([A-Ha-h])$|([A-H])(?=\s+(?:because|since)\b))"
    r"(?!\s*(?:[,&]|and\b|or\b))"  # several
)
_YES_OR_NO = re.compile(r"(yes|no|true|false)(?=\s*(?:$|[,.!:;–—\n]))", re.IGNORECASE)
_NUMBER = re.compile(r"([-+]?)[$€£]?([-+]?)(\d{1,3}(?:,\d{3})+|\d{1,40})?(\.\d{1,40})?%?", re.ASCII)
_BEGINS_WITH_NUMBER = re.compile(r"[-+$€£.]{0,2}\d")
_RATIO = re.compile(r"([-+]?\d{1,40})\s?/\s?(\d{1,40})", re.ASCII)
_MIXED = re.compile(r"([-+]?)(\d{1,40})\s(\d{1,40})/(\d{1,40})", re.ASCII)
_ATTACHED_UNIT = re.compile(r"(.*\d)([A-Za-z°€£]{1,3})")
_HALF_OF_DAY = re.compile(r"(\d)\s?([ap])\.?m\b", re.IGNORECASE)
_EQUALS = re.compile(r"(?<![<>!=])=+(?!.*=)|\b(?:is|are|equals)\s+(?=[-$]?\d)")
_SEVERAL = re.compile(r",\s|\b(?:or|and)\b")
_SAYS_OF_NUMBER = re.compile(r"\b(?:not|never|no|cannot)\b|n['’]t\b|\d\s+is\s+(?!the\b|left\b|[-$]?\d)", re.IGNORECASE)
_ARTICLES = frozenset({"a", "an", "the"})


def final_answer(text: str) -> str | None:
    """The answer of a text, in a form in which equal answers are equal; None where it has none that can be compared, as essays have not.

    Numbers are reduced fractions without their unit, percent and currency being units: "1,000.0" and "$1000" are "1000", "0.5" is "1/2".
    Choices are capital letters, JSON is canonical, and of an object with an "answer" only that counts. Other short answers are
    compared as those of SQuAD are (Rajpurkar et al. 2016, arXiv 1606.05250): without case, articles and punctuation.
    """
    text = _THOUGHTS.sub("", text).strip()
    blocks = _BLOCK.findall(text)
    found = _json_answer(blocks[0] if len(blocks) == 1 else text)
    if found is not None:
        return found
    for marked in (_boxed(text), _last(_MARKED.findall(text)), _after_phrase(text)):
        found = _value(marked) if marked else None
        if found is not None:
            return found
    if "```" in text or "\\boxed{" in text:  # a program, or a box that is not closed
        return None
    plain = _plain(text)
    return _begins_with(plain) or (_value(plain) if len(plain.split()) <= _MOST_WORDS else _last_number(plain))


def calls_answer(calls: Sequence[CallPiece]) -> str | None:
    """Calls of functions as an answer: names and canonical arguments, in no order; None where there is none or arguments are no JSON.

    Args:
        calls: each whole.
    """
    written = []
    for call in calls:
        try:
            written.append(f"{call.name}({_canonical_json(json.loads(call.arguments, parse_constant=_refuse))})")
        except (ValueError, RecursionError):
            return None
    return "\n".join(sorted(written)) or None


def _json_answer(text: str) -> str | None:
    """Of an object or a list."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        value = json.loads(text, parse_constant=_refuse)
        if isinstance(value, dict):
            answers = [value[key] for key in ("final_answer", "answer") if key in value]
            value = answers[0] if answers else value
        return (_value(_plain(value)) or None) if isinstance(value, str) else _canonical_json(value)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _canonical_json(value: Any) -> str:
    return json.dumps(_whole_numbers(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _whole_numbers(value: Any) -> Any:
    """2.0 is 2, and texts have no space around them."""
    if isinstance(value, dict):
        return {key: _whole_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.strip() if isinstance(value, str) else value


def _boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds, if it is closed."""
    begin = text.rfind("\\boxed{")
    if begin < 0:
        return None
    inside = text[begin + len("\\boxed{") :]
    depth = 1
    for place, character in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return _plain(inside[:place])
    return None


def _last(found: Sequence[str]) -> str | None:
    return _plain(found[-1]) if found else None


def _after_phrase(text: str) -> str | None:
    """The rest of the sentence after the last "answer is"."""
    places = [match.end() for match in _PHRASE.finditer(text)]
    return _plain(_SENTENCE_END.split(text[places[-1] :].lstrip(), maxsplit=1)[0]) if places else None


def _plain(text: str) -> str:
    """Without the marks of Markdown and LaTeX."""
    text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:left|right|[,;!()\[\]])|\^\\circ|(?<!\d)\*\*|\*\*(?!\d)|__|`|\$\$", "", text)
    text = text.replace("\\$", "$").replace("\\%", "%").replace("−", "-")
    text = re.sub(r"\$([^$\n]{1,80})\$", r"\1", text)  # a formula, and not an amount of dollars
    return _HALF_OF_DAY.sub(r"\1\2m", text).strip().strip("*_\"'“”‘’ ")


def _begins_with(text: str) -> str | None:
    """A choice, or yes or no, and perhaps why."""
    choice = _CHOICE.match(text) if len(text.split()) <= _MOST_WORDS_OF_NUMBER else None  # "A. Introduction" is none
    if choice is not None:
        return str(next(filter(None, choice.groups()))).upper()
    said = _YES_OR_NO.match(text)
    return said.group(1).casefold() if said else None


def _value(text: str) -> str | None:
    """A short text: a number, with its unit perhaps, or words."""
    text = text.strip().rstrip(".!?").strip()
    begun = _begins_with(text)
    if begun is not None:
        return begun
    equals = _EQUALS.search(text)
    if equals is not None and not _SEVERAL.search(text):
        return _value(text[equals.end() :])
    number = _number(text)
    if number is not None:
        return number
    words, numbers = text.split(), _numbers(text)
    if len(numbers) == 1 and (len(words) > 3 or _BEGINS_WITH_NUMBER.match(text)) and not _SAYS_OF_NUMBER.search(text):
        return numbers[0]
    return _short(text) if len(words) <= _MOST_WORDS else _last_number(text)


def _last_number(text: str) -> str | None:
    """The last number of the last sentence, if it is what the text is about."""
    if len(text.split()) > _MOST_WORDS_OF_NUMBER and not _CALCULATION.search(text):
        return None
    sentence = _SENTENCE_END.split(text)[-1]
    numbers = _numbers(sentence)
    return numbers[-1] if numbers and not _SAYS_OF_NUMBER.search(sentence) else None


def _numbers(text: str) -> list[str]:
    """The numbers of a sentence; a date, a time or a name with digits in it stays itself."""
    return [_number_of(word) for word in text.replace("=", " ").split() if any(character.isdigit() for character in word)]


def _number_of(word: str) -> str:
    word = word.strip(".,;:!?()[]\"'“”")
    number = _number(word)
    attached = _ATTACHED_UNIT.fullmatch(word)
    if number is None and attached is not None and attached.group(2).casefold() not in ("am", "pm"):
        number = _number(attached.group(1))
    return word.casefold().replace(",", " ") if number is None else number


def _number(text: str) -> str | None:
    """A number alone, as a reduced fraction."""
    mixed, ratio, number = _MIXED.fullmatch(text), _RATIO.fullmatch(text), _NUMBER.fullmatch(text)
    if mixed is not None and int(mixed.group(4)):
        value = int(mixed.group(2)) + Fraction(int(mixed.group(3)), int(mixed.group(4)))
        return str(-value if mixed.group(1) == "-" else value)
    if ratio is not None and int(ratio.group(2)):
        return str(Fraction(int(ratio.group(1)), int(ratio.group(2))))
    if number is None or not (number.group(3) or number.group(4)):
        return None
    value = Fraction((number.group(3) or "0").replace(",", "") + (number.group(4) or ""))
    return str(-value if "-" in number.group(1) + number.group(2) else value)


def _short(text: str) -> str | None:
    words = [word for word in re.sub(r"[;!?\"'“”‘’()\[\]{}]", "", text.casefold()).split() if word not in _ARTICLES]
    return " ".join(filter(None, (word.strip(".:") for word in " ".join(words).replace(",", " ").split()))) or None
