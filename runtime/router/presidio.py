"""Microsoft Presidio's pattern recognizers, and a spaCy model for names, beside what edgelm recognizes by itself.

Nothing is downloaded: Presidio's own engine, which fetches models, is not used, and neither is its recognizer of e-mail addresses, which
fetches a list of domains; edgelm finds those. Presidio gives up a pattern that takes longer than a minute on one text, and says so only in
its log: it comes in addition to what edgelm recognizes, not in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgelm.errors import InvalidRequestError, MissingPackageError
from edgelm.runtime.router.recognizer import Finding

_NAMES = {  # labels of spaCy's models, in Presidio's words
    "PER": "PERSON",
    "PERSON": "PERSON",
    "LOC": "LOCATION",
    "GPE": "LOCATION",
    "FAC": "LOCATION",
    "LOCATION": "LOCATION",
    "ORG": "ORGANIZATION",
}
_CONTEXT_CHARACTERS = 48  # before a finding that is not sure, where a word of its context makes it so


class PresidioRecognizer:
    """Finds what Presidio's predefined patterns find. Best effort, and no guarantee.

    Args:
        languages: whose countries' patterns are used, as "en"; those that belong to no country are used always.
        model: a spaCy model for names of people, places and organizations: an installed package, or a folder; None for no names.
        min_score: from 0 to 1; a finding that Presidio is less sure of counts only after a word of its context, such as "passport".
        without: kinds that are left alone; by default those that a question can hardly do without.

    Raises:
        MissingPackageError: Presidio is not installed.
        InvalidRequestError: the model cannot be loaded, or the score makes no sense.
    """

    def __init__(
        self,
        languages: Sequence[str] = ("en",),
        model: str | Path | None = None,
        min_score: float = 0.5,
        without: Collection[str] = ("DATE_TIME", "URL", "UUID"),
    ) -> None:
        if not 0 <= min_score <= 1:
            raise InvalidRequestError(f"min_score is {min_score!r}; it must be a number from 0 to 1")
        self._min_score = min_score
        self._recognizers = _pattern_recognizers(frozenset(languages), frozenset(without))
        self._model = None if model is None else _load(model)
        self._without = frozenset(without)

    def find(self, text: str) -> Iterator[Finding]:
        """The findings, which may overlap."""
        lower = text.lower()
        for recognizer in self._recognizers:
            for result in recognizer.analyze(text, recognizer.supported_entities, None):
                before = lower[max(0, result.start - _CONTEXT_CHARACTERS) : result.start]
                if result.score >= self._min_score or any(word.lower() in before for word in recognizer.context or ()):
                    yield Finding(result.start, result.end, result.entity_type)
        if self._model is not None:
            for entity in self._model(text).ents:
                kind = _NAMES.get(entity.label_)
                if kind is not None and kind not in self._without and entity.end_char > entity.start_char:
                    yield Finding(entity.start_char, entity.end_char, kind)


def _pattern_recognizers(languages: frozenset[str], without: frozenset[str]) -> list[Any]:
    try:
        from presidio_analyzer import PatternRecognizer, predefined_recognizers
    except ImportError as error:
        raise MissingPackageError(f"redaction by Presidio needs presidio-analyzer ({error}); pip install 'edgelm[redact]'") from None
    classes: list[type[Any]] = [
        each for _, each in sorted(vars(predefined_recognizers).items()) if inspect.isclass(each) and issubclass(each, PatternRecognizer)
    ]
    made = [each() for each in classes if each is not predefined_recognizers.EmailRecognizer]
    return [
        each
        for each in made
        if (each.country_code() is None or each.supported_language in languages) and without.isdisjoint(each.supported_entities)
    ]


def _load(model: str | Path) -> Any:
    import spacy  # Presidio needs it, so it is there

    try:
        return spacy.load(model)
    except (OSError, ValueError, ImportError) as error:
        raise InvalidRequestError(
            f"the spaCy model {str(model)!r} cannot be loaded ({error!s:.200}); give the name of an installed model, or its folder"
        ) from None
