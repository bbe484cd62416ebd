"""Requests without personal data and secrets, and answers with them put back.

Redaction is best effort, and no guarantee: what no recognizer finds goes out as it is, and what is left may still tell who wrote it.
Where it cannot be done, the request must stay on the device: everything here fails closed, and no error shows what was found.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from edgelm.errors import RedactionError
from edgelm.runtime.chat_model import ChatRequest
from edgelm.runtime.router.placeholders import Placeholders, Restorer
from edgelm.runtime.router.recognizer import Finding, Recognizer, merged
from edgelm.runtime.router.request_texts import Place, rewritten

_MOST_ROUNDS = 4  # what is left of a text may look like something new once other things are gone; then the request stays
_MAX_LABEL = 64
_SHORT = 6  # characters of a value that is not looked for inside longer words
_WORDS = re.compile(r"[^\W\d_]+(?:[\s.'_-]+[^\W\d_]+)*")
_NUMBER = re.compile(r"[\dA-Za-z+(](?:[ ./()+-]{0,3}[\dA-Za-z]){7,40}")


@dataclass(frozen=True)
class Redaction:
    """A request that shows placeholders where values were. Best effort: what was not recognized is still in it.

    Attributes:
        request: what may leave the device.
        counts: how many different values of each kind were replaced.
    """

    request: ChatRequest
    counts: Mapping[str, int]
    _values: Mapping[str, str] = field(repr=False)

    def restore(self, text: str, in_json: bool = False) -> str:
        """A whole answer with the values in place of their placeholders; see `restorer`."""
        restorer = self.restorer(in_json)
        return restorer.push(text) + restorer.finish()

    def restorer(self, in_json: bool = False) -> Restorer:
        """For an answer that arrives in pieces: one for the text of each choice, and one for each call of a tool.

        Args:
            in_json: the text is JSON: the arguments of a call, or an answer whose form is a JSON schema.
        """
        return Restorer(self._values, in_json)


class Redactor:
    """Replaces what recognizers find. Best effort, and no guarantee.

    Args:
        recognizers: whose findings are all replaced. Where they overlap and are of equal length, the first one's kind is shown.
    """

    def __init__(self, recognizers: Sequence[Recognizer]) -> None:
        self._recognizers = tuple(recognizers)

    def redact(self, request: ChatRequest) -> Redaction:
        """The request with placeholders: in all messages, calls, results, tools, stop strings and in the form. The same value gets the same
        placeholder wherever it is, also where nobody would have recognized it. A number in JSON becomes a string.

        Raises:
            RedactionError: something could not be read, recognized or replaced. The request must stay on the device.
        """
        placeholders = Placeholders(_fresh_tag(request))
        for _ in range(_MOST_ROUNDS):
            sweep = _Sweep(self._recognizers, placeholders)
            rewritten(request, sweep.look)
            request = rewritten(request, sweep.replace)
            if not sweep.n_replaced:  # so that what is sent is what was looked at last, and nothing was found in it
                counts = Counter(placeholders.kinds.values())
                return Redaction(request, dict(counts), placeholders.values)
        raise RedactionError(
            f"personal data was still found after {_MOST_ROUNDS} rounds of replacing it; such a request is answered on this device only"
        )


def _fresh_tag(request: ChatRequest) -> str:
    texts: list[str] = []

    def collect(text: str, _: Place) -> str:
        texts.append(text.lower())
        return text

    rewritten(request, collect)
    while True:
        tag = secrets.token_hex(4)
        if not tag.isalpha() and not any(tag in text for text in texts):
            return tag


class _Sweep:
    """One round: look at all texts, then replace what was found in any of them.

    Attributes:
        n_replaced: places that were replaced.
    """

    def __init__(self, recognizers: Sequence[Recognizer], placeholders: Placeholders) -> None:
        self._recognizers = recognizers
        self._placeholders = placeholders
        self._found: dict[tuple[str, str], list[Finding]] = {}
        self._variants: dict[str, str] | None = None
        self.n_replaced = 0

    def look(self, text: str, place: Place) -> str:
        key = (text, place.label)
        if key not in self._found:
            self._found[key] = list(self._outside(text, self._recognized(text, place)))
            for finding in self._found[key]:
                self._placeholders.of(text[finding.start : finding.end], finding.kind)
        return text

    def replace(self, text: str, place: Place) -> str:
        repeated = self._outside(text, merged(self._repeated(text)))
        pieces: list[str] = []
        done = 0
        for finding in merged([*self._found[(text, place.label)], *repeated]):
            if place.is_fixed:
                raise RedactionError(
                    f"{place.where} holds what looks like personal data or a secret, and cannot be rewritten; "
                    "such a request is answered on this device only"
                )
            pieces += [text[done : finding.start], self._placeholders.of(text[finding.start : finding.end], finding.kind)]
            done = finding.end
            self.n_replaced += 1
        return "".join([*pieces, text[done:]])

    def _recognized(self, text: str, place: Place) -> list[Finding]:
        """All findings in a text, which is read after its label: `password: "..."`."""
        quote = next((each for each in "\"'`" if each not in text), '"')
        before = f"{place.label[-_MAX_LABEL:]}: {quote}" if place.label else ""
        shown = f"{before}{text}{quote}" if before else text
        failure = ""
        findings: list[Finding] = []
        try:
            findings = [each for recognizer in self._recognizers for each in recognizer.find(shown)]
        except Exception as error:  # noqa: BLE001  whatever it is, the text must not be sent
            failure = type(error).__name__
        if failure or any(not 0 <= each.start < each.end <= len(shown) for each in findings):  # out here, so that no cause shows the text
            raise RedactionError(
                f"a recognizer failed at {place.where} ({failure or 'with places outside the text'}); "
                "such a request is answered on this device only"
            )
        n = len(before)
        inside = [Finding(max(each.start - n, 0), min(each.end - n, len(text)), each.kind) for each in findings]
        return merged(each for each in inside if each.start < each.end)

    def _outside(self, text: str, findings: Sequence[Finding]) -> Iterator[Finding]:
        """What findings cover beside placeholders."""
        places = self._placeholders.places(text)
        for finding in findings:
            inside = [(start, end) for start, end in places if start < finding.end and finding.start < end]
            ends = [finding.start, *(end for _, end in inside)]
            starts = [*(start for start, _ in inside), finding.end]
            for start, end in zip(ends, starts, strict=True):
                if start < end and (not inside or any(each.isalnum() for each in text[start:end])):
                    yield Finding(start, end, finding.kind)

    def _repeated(self, text: str) -> Iterator[Finding]:
        """Where values that are known from anywhere in the request are in a text."""
        if self._variants is None:
            self._variants = {variant: kind for value, kind in self._placeholders.kinds.items() for variant in _variants(value)}
        for variant, kind in self._variants.items():
            start = text.find(variant)
            while start >= 0:
                end = start + len(variant)
                if not _is_word(variant) or not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum()):
                    yield Finding(start, end, kind)
                start = text.find(variant, end)


def _variants(value: str) -> Iterator[str]:
    """The ways to write a value that are looked for: itself, as in a JSON string, and a number without its separators."""
    yield value
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    if _NUMBER.fullmatch(value) and sum(map(str.isdigit, value)) >= 8:
        yield "".join(each for each in value if each.isalnum())


def _is_word(value: str) -> bool:
    """Whether a value may be part of words that have nothing to do with it."""
    return len(value) < _SHORT or _WORDS.fullmatch(value) is not None
