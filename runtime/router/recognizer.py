"""The border to whatever finds personal data and secrets in a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Finding:
    """A place in a text that should not leave the device.

    Attributes:
        start, end: the characters text[start:end].
        kind: of what is there, such as "EMAIL".
    """

    start: int
    end: int
    kind: str


class Recognizer(Protocol):
    """Finds personal data or secrets, as well as it can: no recognizer finds them all."""

    def find(self, text: str) -> Iterable[Finding]:
        """The findings, in any order; they may overlap."""
        ...


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that do not overlap, in order: those that did become one, of the longest one's kind (of several, the first one's).

    Nothing of a finding is given up for another: a domain that a name overlaps is covered to its end.
    """
    whole: list[Finding] = []
    longest = 0
    for finding in sorted(findings, key=lambda each: (each.start, -each.end)):
        length = finding.end - finding.start
        if whole and finding.start < whole[-1].end:
            last = whole[-1]
            whole[-1] = Finding(last.start, max(last.end, finding.end), finding.kind if length > longest else last.kind)
            longest = max(longest, length)
        else:
            whole.append(finding)
            longest = length
    return whole
