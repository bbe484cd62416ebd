"""When an answer of this device is not enough, as its owner wants it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from edgelm.errors import InvalidRequestError
from edgelm.runtime.certainty import TokenCertainty
from edgelm.runtime.router.difficulty import Difficulty
from edgelm.runtime.router.signals import Signals
from edgelm.runtime.router.thinking import ThinkingBudget

_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


@dataclass(frozen=True)
class Rule:
    """A conversation that always is, or never is, answered on this device, if all that is given here fits it.

    Attributes:
        answer: where.
        name: for explanations.
        matches: a regular expression that is found anywhere in the conversation, its tools, stop strings or form.
        language: of the last question, a BCP 47 tag.
        min_tokens: of the conversation, at least.
        has_tools, has_code: whether tools are offered, and whether the last question shows code.

    Raises:
        InvalidRequestError: it would fit every conversation, or its expression is none.
    """

    answer: Literal["local", "cloud"]
    name: str
    matches: str | None = None
    language: str | None = None
    min_tokens: int | None = None
    has_tools: bool | None = None
    has_code: bool | None = None

    def __post_init__(self) -> None:
        if self.matches == "":
            raise InvalidRequestError(f"the rule {self.name!r} has an empty matches, which every conversation fits; write an expression")
        if self.language is not None and not _LANGUAGE.fullmatch(self.language):
            raise InvalidRequestError(f'the rule {self.name!r} has language = {self.language!r}; write a tag such as "de"')
        if all(each is None for each in (self.matches, self.language, self.min_tokens, self.has_tools, self.has_code)):
            raise InvalidRequestError(
                f"the rule {self.name!r} has no condition; give one of matches, language, min_tokens, has_tools, has_code"
            )
        try:
            re.compile(self.matches or "")
        except re.error as error:
            raise InvalidRequestError(
                f"the rule {self.name!r} has matches = {self.matches!r}, which is no regular expression: {error}"
            ) from None

    def fits(self, signals: Signals, text: str) -> bool:
        """Whether it is about this conversation, whose text is given."""
        return (
            (self.matches is None or re.search(self.matches, text) is not None)
            and self.language in (None, signals.language)
            and (self.min_tokens is None or signals.n_prompt_tokens >= self.min_tokens)
            and self.has_tools in (None, signals.wants_tools)
            and self.has_code in (None, signals.has_code)
        )


class Trust(Protocol):
    """How far the answers of one model file can be trusted, by their tokens' certainties. None where that is not known.

    Attributes:
        n_early: tokens after which a first look makes sense.
        hopeless: below this probability more thinking does not help.
        threshold: from this probability on an answer is trusted.
    """

    @property
    def n_early(self) -> int: ...
    @property
    def hopeless(self) -> float: ...
    @property
    def threshold(self) -> float: ...

    def early(self, certainties: Sequence[TokenCertainty]) -> float | None:
        """Probability that the answer will be right, by its first n_early tokens."""

    def of(self, certainties: Sequence[TokenCertainty], text: str) -> float | None:
        """Probability that the answer of this text is right."""

    @property
    def verifies(self) -> bool:
        """Whether it helps to ask the model about its own answer."""

    def verified(self, confidence: float, said_yes: float) -> float | None:
        """Probability that the answer is right, by this confidence and by what the model said of it."""


@dataclass(frozen=True)
class Strategy:
    """How the router decides.

    Attributes:
        rules: looked at first; "local" wins over "cloud".
        difficulty: tells what is gained by asking the cloud, before anything is computed; None for no such guess.
        ask_first_above: the gain from which the cloud is asked at once.
        trust: of the local model; None where it is not calibrated, so that its confidence is unknown.
        unknown: who answers where the confidence is unknown.
        thinking: "auto" in the grey band of the confidence, "on" whenever an answer is not trusted.
        budget: of thinking.
        agreement: the part of the votes from which an answer that was thought over is trusted.
        holds_cloud: readers of a stream that cannot take anything back see the cloud's answer when it is whole; otherwise as it comes, and
            an error if it breaks off.
    """

    rules: Sequence[Rule] = ()
    difficulty: Difficulty | None = None
    ask_first_above: float | None = None
    trust: Trust | None = None
    unknown: Literal["local", "cloud"] = "local"
    thinking: Literal["off", "on", "auto"] = "auto"
    budget: ThinkingBudget = field(default_factory=ThinkingBudget)
    agreement: float = 0.6
    holds_cloud: bool = True
