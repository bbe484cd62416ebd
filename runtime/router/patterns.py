"""Kinds of things that a pattern and a check tell from everything else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from edgelm.runtime.router.plain_text import PlainText
from edgelm.runtime.router.recognizer import Finding

# Where a thing may begin and end. A line's end that JSON wrote as \n ends in a letter, and still is one.
BEGIN, END = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))", r"(?![A-Za-z0-9])"
_LABEL_CHARACTERS = 48  # before a thing, where its label may be
_NUMBER = re.compile(r"\d(?:[ ./()-]{0,3}\d)*+")


@dataclass(frozen=True)
class Entity:
    """A kind of thing. Patterns must be bounded, so that no text makes them slow.

    Attributes:
        kind: its name.
        pattern: a regular expression; if it has a group `value`, that alone is the thing.
        check: whether a text that fits the pattern is one; None if the pattern says it all.
        label: a regular expression that must be found shortly before, for things that look like any number.
        hints: of which the text must have one, in lower case, or the pattern need not be tried; none for any text.
        n_digits: of a number in the text, or the pattern need not be tried.
    """

    kind: str
    pattern: str
    check: Callable[[str], bool] | None = None
    label: str | None = None
    hints: Sequence[str] = ()
    n_digits: int = 0


class PatternRecognizer:
    """Finds things of the kinds it is given. Best effort: what fits no pattern is not found."""

    def __init__(self, entities: Iterable[Entity]) -> None:
        self._entities = [
            (entity, re.compile(entity.pattern), None if entity.label is None else re.compile(entity.label, re.IGNORECASE))
            for entity in entities
        ]

    def find(self, text: str) -> Iterator[Finding]:
        """The findings, which may overlap."""
        plain = PlainText.of(text)
        lower = plain.text.lower()
        n_digits = max((sum(map(str.isdigit, number)) for number in _NUMBER.findall(plain.text)), default=0)
        for entity, pattern, label in self._entities:
            if n_digits >= entity.n_digits and (not entity.hints or any(hint in lower for hint in entity.hints)):
                for start, end in _matches(plain.text, entity, pattern, label):
                    yield Finding(*plain.original(start, end), entity.kind)


def _matches(text: str, entity: Entity, pattern: re.Pattern[str], label: re.Pattern[str] | None) -> Iterator[tuple[int, int]]:
    group = "value" if "value" in pattern.groupindex else 0
    place = 0
    while match := pattern.search(text, place):
        start, end = match.span(group)
        is_labelled = label is None or label.search(text, max(0, start - _LABEL_CHARACTERS), start)
        if start < end and is_labelled and (entity.check is None or entity.check(text[start:end])):
            yield start, end
            place = end
        else:
            place = match.start() + 1  # the real one may begin inside
