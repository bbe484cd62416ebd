"""The border between whoever wants an answer and whoever gives it: messages in, a stream of events out.

A model on this device is a ChatModel, and so may be one that is elsewhere, or one that chooses between them. The server and the commands
speak to a ChatModel and do not know which.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, Protocol, Self

from edgelm.runtime.certainty import TokenCertainty
from edgelm.runtime.privacy import ConsentRequest, Level
from edgelm.runtime.results import FinishReason, TokenLogprob
from edgelm.runtime.sampling import SamplingParams
from edgelm.runtime.tool_calls import CallPiece, ToolUse

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Asker:
    """Who asks, and how long they wait.

    Attributes:
        client: whose request it is; clients share the machine evenly.
        timeout_s: seconds after which the request has failed; None for never.
        levels: how much of it may leave this device, as far as they have a say: all that were named, as the strictest does not tell all.
        consent: a person's answer to a question that an earlier answer carried: its id.
        reading: "whole" where nobody sees the answer before its end; "stream" where what was shown stays; "restarts" where what was shown
            can be taken back by a RouteDecision.
        request_id: what logs call the request.
    """

    client: str = ""
    timeout_s: float | None = None
    levels: tuple[Level, ...] = ()
    consent: str | None = None
    reading: Literal["whole", "stream", "restarts"] = "stream"
    request_id: str = ""


@dataclass(frozen=True)
class ChatRequest:
    """A conversation that wants answers.

    Attributes:
        messages: as LLM.chat takes them.
        params: how tokens are chosen.
        n: answers that are wanted, each from its own random numbers.
        tools: functions that an answer may call; None for none.
    """

    messages: Sequence[Message]
    params: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    tools: ToolUse | None = None


@dataclass(frozen=True)
class Accepted:
    """The request waits for its place; the first event.

    Attributes:
        n_prompt: tokens of the prompt.
    """

    n_prompt: int


@dataclass(frozen=True)
class TextDelta:
    """The next piece of an answer's text.

    Attributes:
        choice: which answer, counted from 0.
        text: may be empty.
        logprobs: of the tokens since the last piece, where they were asked for.
        certainties: of the same, and of the token that ended the text, if one did; where they were asked for.
    """

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    certainties: tuple[TokenCertainty, ...] | None = None


@dataclass(frozen=True)
class ToolCallDelta:
    """The next piece of a call of a function, in place of text."""

    choice: int
    piece: CallPiece


@dataclass(frozen=True)
class Finish:
    """An answer has ended; by a stop string, if there is one."""

    choice: int
    reason: FinishReason | Literal["tool_calls"]
    stop_string: str | None = None


@dataclass(frozen=True)
class Usage:
    """What the request took; the last event.

    Attributes:
        n_prompt: tokens of the prompt.
        n_cached: of them, those that had been computed for an earlier request.
        n_generated: tokens of all answers.
        prefill_s, decode_s: seconds until the first answer began, and from then to the last one's end.
    """

    n_prompt: int
    n_cached: int
    n_generated: int
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class RouteDecision:
    """Where the text that follows comes from. One comes before an answer's text, and one, which tells all, before its usage.

    Attributes:
        route: who answers.
        reason: why, in a word or two that programs can tell apart.
        why: the same for people.
        is_restart: the text so far is taken back, and the answer begins anew.
        confidence: the probability that the local answer is right; None where it is not known.
        fault: what went wrong with asking the cloud, if something did.
        consent: a question that a person must answer before the cloud can be asked.
        redacted: kinds of personal data that were replaced before the cloud was asked, and how many.
        n_samples, agreement: answers that were thought over here beside the first, and the part that agreed; None where it is not known.
        local_tokens: generated here, of all samples.
        cloud_input, cloud_output: the endpoint's tokens, as it told them.
        cost, currency: of the cloud; the worst case where it did not tell what it took. No currency where it was not asked.
        local_s, cloud_s: seconds that either took.
    """

    route: Literal["local", "cloud"]
    reason: str
    why: str
    is_restart: bool = False
    confidence: float | None = None
    fault: str | None = None
    consent: ConsentRequest | None = None
    redacted: Mapping[str, int] = field(default_factory=dict)
    n_samples: int = 0
    agreement: float | None = None
    local_tokens: int = 0
    cloud_input: int = 0
    cloud_output: int = 0
    cost: Decimal = Decimal(0)
    currency: str | None = None
    local_s: float = 0.0
    cloud_s: float = 0.0


Event = Accepted | RouteDecision | TextDelta | ToolCallDelta | Finish | Usage


class Events:
    """A stream of events that must be closed, whether or not anybody took one; closing it ends the computation.

    Args:
        events: the stream.
        release: called once when it is closed. (A generator that never began runs no `finally`.)
    """

    def __init__(self, events: AsyncIterator[Event], release: Callable[[], None]) -> None:
        self._events = events
        self._release: Callable[[], None] | None = release

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def decided(self) -> None:
        """Wait until it is known who answers, where there is a choice. No event is lost."""

    def close(self) -> None:
        """End. Closing twice is allowed."""
        release, self._release = self._release, None
        if release is not None:
            release()


class ChatModel(Protocol):
    """Answers conversations."""

    async def chat(self, request: ChatRequest, asker: Asker) -> Events:
        """Begin to answer. What is wrong with the request is raised here, before the first event.

        Closing the events ends the computation.

        Raises:
            InvalidRequestError, ContextOverflowError, TemplateError: the request cannot be answered.
            BusyError: too many wait.
            DeadlineError: while the events are read, after timeout_s.
        """
        ...
