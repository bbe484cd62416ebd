"""More computing on this device before anybody else is asked: several samples at once, until most agree or the budget is spent.

Decoding waits for memory, not for arithmetic, so samples that are computed in one batch cost little more than one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Literal

from edgelm.errors import InvalidRequestError
from edgelm.runtime.chat_model import Asker, ChatModel, ChatRequest, Finish, TextDelta, ToolCallDelta, Usage
from edgelm.runtime.router.answers import calls_answer, final_answer
from edgelm.runtime.router.vote import Vote
from edgelm.runtime.sampling import SamplingParams
from edgelm.runtime.tool_calls import CallPiece

Stop = Literal["clear", "samples", "tokens", "seconds", "no comparable answers"]

_LEAST_TEMPERATURE = 0.7
"""Samples that are all the same tell nothing; this is what self-consistency was found with (Wang et al. 2022, arXiv 2203.11171)."""


@dataclass(frozen=True)
class ThinkingBudget:
    """What thinking may cost.

    Attributes:
        samples: answers at most, beside the first.
        wave: of them, how many are asked for together.
        tokens: of all samples together.
        seconds: of waiting and computing.

    Raises:
        InvalidRequestError: one of them allows nothing.
    """

    samples: int = 8
    wave: int = 8
    tokens: int = 4096
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("samples", "wave", "tokens"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(f"the thinking budget's {name} is {getattr(self, name)}; it must be at least 1")
        if not self.seconds > 0:
            raise InvalidRequestError(f"the thinking budget's seconds are {self.seconds}; they must be more than 0")


@dataclass(frozen=True)
class Thought:
    """What thinking came to.

    Attributes:
        text, calls: the answer that won, as it was first said: the first answer, if it agrees; calls are whole.
        answer: what it comes down to; None where nothing could be compared.
        agreement: its part of all votes, the first answer's included, from 0 to 1.
        margin: how far it is before the next one, as a part of all votes.
        n_samples: that came to their end.
        n_tokens: of all samples, also of those that were stopped; as Usage says, or else as many as there were pieces.
        seconds: that it took.
        stopped: why it ended; "clear" if more samples would not have changed the answer, or most probably not.
    """

    text: str
    calls: tuple[CallPiece, ...]
    answer: str | None
    agreement: float
    margin: float
    n_samples: int
    n_tokens: int
    seconds: float
    stopped: Stop


async def think(
    model: ChatModel,
    request: ChatRequest,
    asker: Asker,
    budget: ThinkingBudget,
    first: str | None = None,
    first_calls: Sequence[CallPiece] = (),
) -> Thought:
    """Ask for samples in waves and count what they come to, until the vote is clear or the budget is spent; then all are stopped at once.

    Samples have no log probabilities. A sample that was cut off, for max_tokens, has no answer.

    Args:
        first, first_calls: the answer that was given already, which has a vote. Where it cannot be compared, no sample is asked for.

    Raises:
        BusyError, DeadlineError, InvalidRequestError: as ChatModel.chat.
    """
    poll = _Poll(budget)
    begin = monotonic()
    if first is not None or first_calls:
        poll.count(_Sample(first or "", tuple(first_calls)))
    try:
        async with asyncio.timeout(budget.seconds) as clock:
            while (stopped := poll.stop()) is None:
                left = None if asker.timeout_s is None else max(asker.timeout_s - (monotonic() - begin), 0.0)
                await poll.ask(model, request, replace(asker, timeout_s=left))
    except TimeoutError:
        if not clock.expired():
            raise
        stopped = "seconds"
    return poll.thought(monotonic() - begin, stopped)


@dataclass(frozen=True)
class _Sample:
    text: str
    calls: tuple[CallPiece, ...] = ()

    @property
    def answer(self) -> str | None:
        return calls_answer(self.calls) if self.calls else final_answer(self.text)


class _Poll:
    """Votes as they come in.

    Attributes:
        n_samples, n_tokens: as in Thought.
    """

    def __init__(self, budget: ThinkingBudget) -> None:
        self.n_samples = self.n_tokens = 0
        self._n_asked = 0
        self._budget = budget
        self._vote = Vote()
        self._said: dict[str | None, _Sample] = {}

    def count(self, sample: _Sample, is_whole: bool = True) -> None:
        answer = sample.answer if is_whole else None
        self._vote = self._vote.plus(answer)
        self._said.setdefault(answer, sample)

    def stop(self, is_under_way: bool = False) -> Stop | None:
        """Why no more should be asked for, if so.

        Args:
            is_under_way: samples that were asked for have not ended.
        """
        budget = self._budget
        n_left = budget.samples - self.n_samples
        if n_left > 0 and self._vote.is_clear(n_left):
            return "clear"
        if self.n_tokens >= budget.tokens:
            return "tokens"
        if is_under_way:
            return None
        if self._vote.total and self._vote.leader is None:
            return "no comparable answers"
        return None if n_left > 0 else "samples"

    async def ask(self, model: ChatModel, request: ChatRequest, asker: Asker) -> None:
        """One wave."""
        n = min(self._budget.wave, self._budget.samples - self.n_samples)
        room = self._budget.tokens - self.n_tokens
        params = _sampled(request.params, self._n_asked, room)
        self._n_asked += n
        samples = [_Unfinished() for _ in range(n)]
        n_before = self.n_tokens
        events = await model.chat(replace(request, params=params, n=n), asker)
        try:
            async for event in events:
                match event:
                    case TextDelta(choice, text):
                        self.n_tokens += 1
                        samples[choice].texts.append(text)
                    case ToolCallDelta(choice, piece):
                        self.n_tokens += 1
                        samples[choice].pieces.append(piece)
                    case Finish(choice, reason):
                        self.n_samples += 1
                        self.count(samples[choice].whole(), reason != "length")
                    case Usage(n_generated=n_generated):
                        self.n_tokens = n_before + n_generated
                if self.stop(is_under_way=True):
                    return
        finally:
            events.close()

    def thought(self, seconds: float, stopped: Stop) -> Thought:
        answer = self._vote.leader
        said = self._said.get(answer, _Sample(""))
        vote = self._vote
        return Thought(said.text, said.calls, answer, vote.share, vote.margin, self.n_samples, self.n_tokens, seconds, stopped)


class _Unfinished:
    """A sample as it comes."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.pieces: list[CallPiece] = []

    def whole(self) -> _Sample:
        heads = [piece for piece in self.pieces if piece.name is not None]
        calls = (replace(head, arguments="".join(p.arguments for p in self.pieces if p.index == head.index)) for head in heads)
        return _Sample("".join(self.texts), tuple(calls))


def _sampled(params: SamplingParams, n_before: int, room: int) -> SamplingParams:
    """How samples are drawn that differ from each other, from the first answer, and from the n_before that were asked for already."""
    return replace(
        params,
        temperature=max(params.temperature, _LEAST_TEMPERATURE),
        top_k=SamplingParams.top_k if params.top_k == 1 else params.top_k,
        seed=None if params.seed is None else params.seed + 1 + n_before,
        max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
        logprobs=None,
    )
