"""What can be told of a conversation before anything answers it: cheap, local, and of any subject.

No feature names a subject, so that what is learned on some carries over to others. The work is bounded whatever is sent: a message
is looked at for its first and last characters, and every pattern is linear.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from edgelm.runtime.router.language import UNKNOWN, language_of

MAX_CHARACTERS = 8_000
"""Of one message that are looked at: half of them from its beginning, half from its end."""

_CHARACTERS_PER_TOKEN = 4  # of English prose, roughly

Format = Literal["options", "free"]


class Feature(NamedTuple):
    """A number that a difficulty may be learned from.

    Attributes:
        much, little: words for a value above and below the usual.
        reason: why it may tell how hard a question is.
    """

    much: str
    little: str
    reason: str


FEATURES: Mapping[str, Feature] = {
    "words": Feature("a long question", "a short question", "more to read is more to get wrong"),
    "sentence_length": Feature("long sentences", "short sentences", "long sentences nest their conditions"),
    "long_words": Feature("many long words", "few long words", "technical vocabulary is long"),
    "numbers": Feature("many numbers", "few numbers", "each is a quantity to keep track of"),
    "maths": Feature("many mathematical signs", "few mathematical signs", "formal reasoning, which can be hard for both models"),
    "code": Feature("code", "no code", "the state of a program must be followed"),
    "steps": Feature("many words of comparing and sequence", "few words of comparing and sequence", "each stands for a step of reasoning"),
    "conditions": Feature("many words of condition", "few words of condition", "a supposed case must be thought through"),
    "negation": Feature("a negation", "no negation", "what is asked must be turned round"),
    "people": Feature("many personal pronouns", "few personal pronouns", "a story about people, who must be told apart"),
    "names": Feature("many names", "few names", "knowledge of names grows with the size of a model"),
    "parts": Feature("numbered parts", "no numbered parts", "all parts must be judged rightly"),
    "asks_quantity": Feature("a quantity asked for", "no quantity asked for", "calculation rather than recall"),
    "asks_reason": Feature("a reason asked for", "no reason asked for", "explanation rather than recall"),
    "asks_choice": Feature("a choice among what is given asked for", "no explicit choice asked for", "comparison of each with the others"),
    "asks_writing": Feature("a text to be written", "no text to be written", "no single answer is the right one"),
    "asks_change": Feature("a text to be changed", "no text to be changed", "what is needed is in the prompt"),
    "option_length": Feature("long options", "short options", "long options are statements to be judged"),
    "option_numbers": Feature("many options that are numbers", "few options that are numbers", "calculation rather than recall"),
    "option_terms": Feature("many options of one or two words", "few options of one or two words", "recall of a term"),
    "option_likeness": Feature("options much alike", "options little alike", "what differs little is hard to tell apart"),
    "option_combines": Feature("an option that refers to others", "no option that refers to others", "options must be judged together"),
    "option_lists": Feature("options that are lists", "options that are no lists", "several things must be right at once"),
    "turns": Feature("many messages before", "few messages before", "earlier turns must be remembered"),
    "context": Feature("much text before the question", "little text before the question", "what is needed must be found in it"),
    "tools": Feature("tools to call", "no tools to call", "calls must follow a schema"),
    "images": Feature("images", "no images", "a text model cannot see it"),
    "foreign": Feature("another language than English", "English", "small models know fewer languages well"),
}
"""Of every feature of a conversation, in the order of `Signals.features`."""


@dataclass(frozen=True)
class Signals:
    """What was seen of a conversation.

    Attributes:
        format: whether the last question gives options to choose from.
        language: of the last question, a BCP 47 tag; "und" where it cannot be told.
        n_prompt_tokens: of the whole conversation; estimated from its length where nobody counted.
        wants_tools, has_code, has_images: what an answer needs.
        n_turns: messages before the last question.
        features: one for each of FEATURES; finite.
    """

    format: Format
    language: str
    n_prompt_tokens: int
    wants_tools: bool
    has_code: bool
    has_images: bool
    n_turns: int
    features: tuple[float, ...]

    def of(self, names: Sequence[str]) -> list[float]:
        """The features of these names."""
        return [self.features[_POSITION[name]] for name in names]


_POSITION = {name: n for n, name in enumerate(FEATURES)}

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OPTION = re.compile(r"(?m)^[ \t]*\(?([A-J])[.):][ \t]+(\S.*)$")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")
_MATHS = re.compile(r"[=+*/^<>$√∫∑∏∂≤≥≠≈×÷∈∉∀∃∪∩⊂→⇒π]|\\[a-z]")
_CODE = re.compile(
    r"```|\w\(\w*\)\s?[;:{]|[;{}][ \t]*$"
    r"|^[ \t]*(?:def|class|import|from|function|const|let|var|public|for|while|#include|SELECT)[ \t].*[({;:=]",
    re.MULTILINE,
)
_PARTS = re.compile(r"\b[A-Za-z]{4,12} [12]\b[ ]?[|:.]|\bI{1,3}[.)]\s|\((?:i{1,3}|[123])\)")
_QUANTITY = re.compile(
    r"\bhow (?:many|much|long|far|old|often)\b|\bwhat (?:is|are|was|will be) the (?:\w+ )?(?:number|total|probability|value|average|mean|"
    r"difference|sum|cost|price|ratio|percentage|amount)\b|\b(?:calculate|compute|find|determine|solve|evaluate|estimate|simplify)\b"
)
_REASON = re.compile(r"\bwhy\b|\bexplain|\bbecause\b|\breasons? for\b")
_CHOICE = re.compile(r"\bwhich (?:one )?of (?:the following|these|the)\b|\bchoose\b|\bselect\b")
_WRITING = re.compile(r"\b(?:write|compose|draft|create|generate|invent)\b")
_CHANGE = re.compile(r"\b(?:summari[sz]e|translate|rewrite|rephrase|paraphrase|shorten|proofread|correct the|extract)\b")
_COMBINES = re.compile(r"\b(?:all|none|both|neither|either|any) of\b|\bboth\b|\bneither\b|\bonly\b|\b[A-J] and [A-J]\b|\bI and I")
_NUMERIC_OPTION = re.compile(r"[-+$(]{0,3}[\d.,/%^()\sa-z]{1,14}")
_DIGIT = re.compile(r"\d")

_STEP_WORDS = frozenset(
    [
        "each",
        "every",
        "per",
        "twice",
        "half",
        "times",
        "more",
        "less",
        "fewer",
        "than",
        "then",
        "after",
        "before",
        "total",
        "left",
        "remaining",
        "percent",
        "average",
        "first",
        "next",
        "finally",
    ]
)
_CONDITION_WORDS = frozenset(["if", "suppose", "assume", "assuming", "let", "given", "when", "unless", "would", "whether"])
_NEGATION_WORDS = frozenset(["not", "except", "never", "false", "incorrect", "least", "neither", "nor", "cannot"])
_PEOPLE_WORDS = frozenset(["he", "she", "his", "her", "him", "hers", "i", "my", "me", "mine", "they", "their", "them", "we", "our", "us"])


def signals_of(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, n_prompt_tokens: int | None = None) -> Signals:
    """The signals of a conversation.

    Args:
        messages: with "role" and "content", which is a text, a list of parts, or None; the last of role "user" is the question.
        tools: that may be called.
        n_prompt_tokens: of the whole conversation, if somebody has counted.
    """
    last = max((n for n, message in enumerate(messages) if message.get("role") == "user"), default=len(messages) - 1)
    text, has_images = _text_of(messages[last].get("content")) if messages else ("", False)
    others = [_text_of(message.get("content")) for n, message in enumerate(messages) if n != last]
    n_before = sum(len(other) for other, _ in others)
    has_images = has_images or any(images for _, images in others)
    seen = text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS // 2]}\n{text[-MAX_CHARACTERS // 2 :]}"
    stem, options = _split(seen)
    language = language_of(stem)
    values = _of_question(stem, len(text) / max(len(seen), 1)) | _of_options(options)
    values |= {
        "turns": math.log1p(len(others)),
        "context": math.log1p(n_before),
        "tools": float(bool(tools)),
        "images": float(has_images),
        "foreign": float(language not in ("en", UNKNOWN)),
    }
    return Signals(
        format="options" if options else "free",
        language=language,
        n_prompt_tokens=(len(text) + n_before) // _CHARACTERS_PER_TOKEN if n_prompt_tokens is None else n_prompt_tokens,
        wants_tools=bool(tools),
        has_code=bool(values["code"]),
        has_images=has_images,
        n_turns=len(others),
        features=tuple(values[name] for name in FEATURES),
    )


def _text_of(content: Any) -> tuple[str, bool]:
    """The text of a message, and whether it holds images too."""
    if content is None or isinstance(content, str):
        return content or "", False
    parts = [part if isinstance(part, Mapping) else {"text": part} for part in content]
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return "\n".join(texts), any("image" in str(part.get("type")) for part in parts)


def _split(text: str) -> tuple[str, list[str]]:
    """The question and its options: the last run of lines A, B, C, ... of two at least."""
    lines = list(_OPTION.finditer(text))
    starts = [n for n, line in enumerate(lines) if line[1] == "A"]
    if not starts:
        return text, []
    run = [line for n, line in enumerate(lines[starts[-1] :]) if line[1] == chr(ord("A") + n)]
    if len(run) < 2:
        return text, []
    after = text[run[-1].end() :].strip()
    stem = text[: run[0].start()] + ("" if after.rstrip(":").lower() == "answer" else after)
    return stem, [line[2].strip() for line in run]


def _of_question(text: str, whole: float) -> dict[str, float]:
    """Features of a question.

    Args:
        whole: how many times as long as this text the question is.
    """
    lower = text.lower()
    words = _WORD.findall(lower)
    counts = Counter(words)
    n_words = max(len(words), 1)
    n_numbers = len(_NUMBER.findall(text))
    n_sentences = max(len(_SENTENCE_END.findall(text)), 1)
    n_steps = _n_of(counts, _STEP_WORDS) + text.count("%")
    return {
        "words": math.log1p(len(words) * whole),
        "sentence_length": math.log(n_words / n_sentences),
        "long_words": sum(len(word) >= 9 for word in words) / n_words,
        "numbers": math.log1p(n_numbers * whole),
        "maths": len(_MATHS.findall(text)) / (len(text) + 1),
        "code": _found(_CODE, text),
        "steps": math.log1p(n_steps * whole),
        "conditions": _n_of(counts, _CONDITION_WORDS) / n_words,
        "negation": float(not _NEGATION_WORDS.isdisjoint(counts)),
        "people": _n_of(counts, _PEOPLE_WORDS) / n_words,
        "names": len(_NAME.findall(text)) / n_words,
        "parts": _found(_PARTS, text),
        "asks_quantity": _found(_QUANTITY, lower),
        "asks_reason": _found(_REASON, lower),
        "asks_choice": _found(_CHOICE, lower),
        "asks_writing": _found(_WRITING, lower),
        "asks_change": _found(_CHANGE, lower),
    }


def _of_options(options: Sequence[str]) -> dict[str, float]:
    """Features of the options of a question; all 0 where it has none."""
    if not options:
        return {name: 0.0 for name in FEATURES if name.startswith("option")}
    n = len(options)
    words = [set(_WORD.findall(option.lower())) for option in options]
    every = set().union(*words)
    return {
        "option_length": math.log1p(sum(map(len, options)) / n),
        "option_numbers": sum(bool(_NUMERIC_OPTION.fullmatch(option) and _DIGIT.search(option)) for option in options) / n,
        "option_terms": sum(len(option.split()) <= 2 for option in options) / n,
        "option_likeness": 1 - len(every) / max(sum(map(len, words)), 1) if every else 0.0,
        "option_combines": float(any(_COMBINES.search(option) for option in options)),
        "option_lists": float(all("," in option for option in options)),
    }


def _n_of(counts: Mapping[str, int], words: frozenset[str]) -> int:
    return sum(counts.get(word, 0) for word in words)


def _found(pattern: re.Pattern[str], text: str) -> float:
    return float(pattern.search(text) is not None)
