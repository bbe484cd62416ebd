"""One request on its way: answered here, thought over here, and only then asked elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from decimal import Decimal
from time import monotonic
from typing import Literal

from edgelm.errors import EdgeLMError
from edgelm.runtime.chat_model import (
    Accepted,
    Asker,
    ChatModel,
    ChatRequest,
    Event,
    Events,
    Finish,
    RouteDecision,
    TextDelta,
    Usage,
)
from edgelm.runtime.router.asking import FAULTS, Asking
from edgelm.runtime.router.cloud_answer import CloudUsage
from edgelm.runtime.router.ledger import Account
from edgelm.runtime.router.local_answer import LocalAnswer
from edgelm.runtime.router.strategy import Strategy
from edgelm.runtime.router.thinking import Thought, think
from edgelm.runtime.router.verification import self_verification

_TO_SPEND = 0.9  # of the time that is left, where the answer of this device is there
_LEAST_S = 0.1  # for which thinking makes sense
_KEPT = 0.5  # of the time that is left, for an answer of this device that is not there yet


@dataclass(frozen=True)
class Plan:
    """What is done first.

    Attributes:
        first: who is asked first.
        reason, why: as in RouteDecision.
        has_consent: a person has agreed to ask the cloud.
    """

    first: Literal["local", "cloud"]
    reason: str
    why: str
    has_consent: bool = False


class Routing:
    """Says the events of one answer.

    Args:
        asking: how the cloud is asked; None where it may not be.
        say: takes each event.
    """

    def __init__(
        self,
        local: ChatModel,
        strategy: Strategy,
        request: ChatRequest,
        asker: Asker,
        plan: Plan,
        asking: Asking | None,
        say: Callable[[Event], None],
    ) -> None:
        self._local = local
        self._strategy = strategy
        self._request = request
        self._asker = asker
        self._plan = plan
        self._asking = asking
        self._say = say
        self._begin = monotonic()
        self._told = RouteDecision("local", plan.reason, plan.why)
        self._is_accepted = False
        self._kept_by: tuple[str, str] | None = None  # why the cloud was asked in vain: reason, and the same for people
        self._on_screen: object = None  # the answer whose text is seen by the reader

    async def run(self, events: Events | None) -> None:
        """To the end.

        Args:
            events: of this device's answer, where it has begun.
        """
        plan = self._plan
        if plan.first == "cloud" and await self._ask_cloud(plan.reason, plan.why):
            return
        with closing(events or await self._local.chat(watched(self._request, self._strategy), self._left())) as events:
            answer, is_hopeless = LocalAnswer(), False
            if self._watches:
                is_hopeless = await self._read_early(events, answer)
            else:
                self._show(answer, *(self._kept_by or (plan.reason, plan.why)))
            why = "the first tokens show that this device's answer will hardly be right"
            if is_hopeless and await self._ask_cloud("hopeless", why, answer):
                return  # until then this device went on answering, in case the cloud fails
            await self._read(events, answer)
        await self._weigh(answer)

    @property
    def _may_ask(self) -> bool:
        return self._asking is not None and self._kept_by is None

    @property
    def _watches(self) -> bool:
        """Whether anything may still change the local answer, so that it is not shown at once."""
        strategy, may_ask = self._strategy, self._may_ask
        if self._request.n > 1:
            return False
        if strategy.trust is None:
            return strategy.thinking == "on" or (may_ask and strategy.unknown == "cloud")
        return may_ask or strategy.thinking != "off"

    async def _read_early(self, events: Events, answer: LocalAnswer) -> bool:
        """Read until the confidence window has passed; whether there is no hope for the answer, and the cloud may be asked instead."""
        trust, reading = self._strategy.trust, self._asker.reading
        if trust is None:
            if reading == "restarts":  # whoever may be asked for consent has something to judge by
                self._show(answer, self._plan.reason, self._plan.why)
            return False
        while len(answer.certainties) < trust.n_early and answer.usage is None:
            await self._take(events, answer)
        if answer.usage is not None:
            return False
        early = trust.early(answer.certainties[: trust.n_early])
        self._told = replace(self._told, confidence=early)
        if early is not None and early < trust.hopeless and self._may_ask:
            return True
        if reading == "restarts" or (reading == "stream" and early is not None and early >= trust.threshold):
            self._show(answer, "confident so far", "the first tokens are confident enough")
        return False

    async def _read(self, events: Events, answer: LocalAnswer) -> None:
        while answer.usage is None:
            await self._take(events, answer)

    async def _take(self, events: Events, answer: LocalAnswer) -> None:
        """The next event of this device's answer."""
        match event := await anext(events):
            case Accepted():
                self._accept(event.n_prompt)
            case Usage():
                answer.usage = event
            case Finish():
                answer.ends.append(event)
            case TextDelta():
                answer.certainties.extend(event.certainties or ())
                if event.text or event.logprobs:
                    self._add(answer, event)
            case _:
                self._add(answer, event)

    def _add(self, answer: LocalAnswer, event: Event) -> None:
        answer.said.append(event)
        if self._on_screen is answer:
            self._say(event)

    async def _weigh(self, answer: LocalAnswer) -> None:
        """What becomes of this device's whole answer."""
        strategy, trust, plan = self._strategy, self._strategy.trust, self._plan
        confidence = trust.of(answer.certainties, answer.text) if trust is not None and self._request.n == 1 else None
        self._told = replace(self._told, confidence=confidence)
        if not self._watches:
            return self._end(answer, *(self._kept_by or (plan.reason, plan.why)))
        if trust is not None and confidence is not None and confidence >= trust.threshold:
            return self._end(answer, "confident", f"the answer is right with a probability of {confidence:.0%}")
        if self._on_screen is answer and self._asker.reading == "stream":
            return self._end(answer, "shown already", "the answer lost confidence after it was shown, and the reader cannot take it back")
        if (verified := await self._verify(answer, confidence)) is not None:
            self._told = replace(self._told, confidence=verified)
            if trust is not None and verified >= trust.threshold:
                return self._end(answer, "verified", f"asked about it, the model stands by its answer, which is right in {verified:.0%}")
            confidence = verified
        thought = await self._think(answer, confidence)
        if thought is not None:
            self._told = replace(self._told, agreement=thought.agreement, n_samples=thought.n_samples)
            if thought.answer is not None and thought.agreement >= strategy.agreement:
                if thought.text != answer.text or thought.calls != answer.calls:
                    answer = LocalAnswer.thought_over(thought, answer.usage)
                why = f"{thought.agreement:.0%} of this device's answers agree, of which {thought.n_samples} were made to compare"
                return self._end(answer, "agreement", why, thought)
        if self._kept_by is not None:
            return self._end(answer, *self._kept_by, thought)
        if confidence is None and strategy.unknown == "local":
            return self._end(answer, "unknown", "the model is not calibrated, so its confidence is not known", thought)
        if self._asking is None:
            return self._end(answer, plan.reason, plan.why, thought)
        reason, why = "unknown", "the confidence in the answer of this device is not known"
        if confidence is not None:
            reason, why = "not confident", f"the answer of this device is right with a probability of only {confidence:.0%}"
        if await self._ask_cloud(reason, why, answer, thought):
            return None
        return self._end(answer, *(self._kept_by or (reason, why)), thought)

    async def _verify(self, answer: LocalAnswer, confidence: float | None) -> float | None:
        """The confidence after the model was asked about its answer; None where that does not help, or cannot be done."""
        trust = self._strategy.trust
        if trust is None or confidence is None or not trust.verifies or self._strategy.thinking == "off" or answer.calls:
            return None
        try:
            said_yes = await self_verification(self._local, self._request, answer.text, self._left())
        except EdgeLMError:
            return None  # the answer that is there stays
        return None if said_yes is None else trust.verified(confidence, said_yes)

    async def _think(self, answer: LocalAnswer, confidence: float | None) -> Thought | None:
        """More answers of this device, where the strategy wants them."""
        strategy, trust = self._strategy, self._strategy.trust
        is_grey = trust is not None and confidence is not None and confidence >= trust.hopeless
        if strategy.thinking == "off" or (strategy.thinking == "auto" and not is_grey):
            return None
        if answer.is_cut_off or self._request.params.logprobs is not None:
            return None  # others would be cut off, too, or come without log probabilities
        left = self._left()
        seconds = strategy.budget.seconds if left.timeout_s is None else min(strategy.budget.seconds, _KEPT * left.timeout_s)
        if seconds < _LEAST_S:
            return None
        budget = replace(strategy.budget, seconds=seconds)
        try:
            return await think(self._local, self._request, left, budget, answer.text, answer.calls)
        except EdgeLMError:
            return None  # there is no room for thinking, for one; the answer that is there stays

    async def _ask_cloud(self, reason: str, why: str, answer: LocalAnswer | None = None, thought: Thought | None = None) -> bool:
        """Ask the cloud; whether its answer was said. Otherwise it is noted why not.

        Args:
            answer: of this device, as far as it came.
        """
        asking = self._asking
        if asking is None:
            return False
        try:
            await self._hear(asking, reason, why, answer, thought)
        except FAULTS as error:
            if self._on_screen is asking and self._asker.reading != "restarts":
                raise  # what was shown of the cloud's answer cannot be taken back
            self._kept_by = "cloud failed", str(error)
            if asking.lacks_consent:
                self._kept_by = "not consented", "the cloud is asked only with a person's consent"
            else:
                self._told = replace(self._told, fault=str(error))
            return False
        return True

    async def _hear(self, asking: Asking, reason: str, why: str, answer: LocalAnswer | None, thought: Thought | None) -> None:
        """Say the cloud's answer: as it comes, or when it is whole, if its reader could not take it back."""
        reading, left_s = self._asker.reading, self._left().timeout_s
        timeout_s = None if left_s is None else left_s * (_KEPT if answer is None or answer.usage is None else _TO_SPEND)
        is_passed = reading == "restarts" or (reading == "stream" and not self._strategy.holds_cloud)
        held: list[Event] = []
        end = Finish(0, "stop")
        begin, first = monotonic(), 0.0
        async with aclosing(asking.events(reason, self._plan.has_consent, timeout_s)) as events:
            async for event in events:
                first = first or monotonic()
                if isinstance(event, Finish):
                    end = event
                elif is_passed:
                    self._show_cloud(asking, reason, why)
                    self._say(event)
                else:
                    held.append(event)
        self._show_cloud(asking, reason, why)
        for event in held:
            self._say(event)
        usage = asking.account.usage or CloudUsage(0, 0)
        self._say(self._all_told(answer, thought))
        self._say(end)
        self._say(Usage(usage.n_input, 0, usage.n_output, (first or begin) - begin, monotonic() - (first or begin)))

    def _show_cloud(self, asking: Asking, reason: str, why: str) -> None:
        """The cloud's text follows."""
        if self._on_screen is asking:
            return
        self._accept(0)
        self._told = replace(self._told, route="cloud", reason=reason, why=why)
        self._say(replace(self._told, is_restart=self._on_screen is not None))
        self._on_screen = asking

    def _show(self, answer: LocalAnswer, reason: str, why: str) -> None:
        """This device's answer as far as it is there; what comes of it later follows."""
        if self._on_screen is answer:
            return
        self._accept(0)
        self._told = replace(self._told, route="local", reason=reason, why=why)
        self._say(replace(self._told, is_restart=self._on_screen is not None))
        for event in answer.said:
            self._say(event)
        self._on_screen = answer

    def _end(self, answer: LocalAnswer, reason: str, why: str, thought: Thought | None = None) -> None:
        """This device's answer is the one that counts."""
        self._show(answer, reason, why)
        usage = answer.usage or Usage(0, 0, 0, 0.0, 0.0)
        self._told = replace(self._told, reason=reason, why=why)
        told = self._all_told(answer, thought)
        self._say(told)
        for end in answer.ends:
            self._say(end)
        self._say(replace(usage, n_generated=told.local_tokens))

    def _all_told(self, answer: LocalAnswer | None, thought: Thought | None) -> RouteDecision:
        """What was decided, with all that it took."""
        asking = self._asking
        account = Account() if asking is None else asking.account
        usage = account.usage or CloudUsage(0, 0)
        own = 0 if answer is None else len(answer.certainties) if answer.usage is None else answer.usage.n_generated
        return replace(
            self._told,
            is_restart=False,
            consent=None if asking is None else asking.question,
            redacted={} if asking is None else asking.redacted,
            local_tokens=own + (thought.n_tokens if thought is not None else 0),
            cloud_input=usage.n_input,
            cloud_output=usage.n_output,
            cost=Decimal(account.millionths).scaleb(-6),
            currency=asking.currency if asking is not None and account.n_attempts else None,
            cloud_s=account.seconds,
            local_s=max(0.0, monotonic() - self._begin - account.seconds),
        )

    def _accept(self, n_prompt: int) -> None:
        if not self._is_accepted:
            self._is_accepted = True
            self._say(Accepted(n_prompt))

    def _left(self) -> Asker:
        """The asker, with the time that is left of theirs."""
        timeout_s = self._asker.timeout_s
        return self._asker if timeout_s is None else replace(self._asker, timeout_s=max(0.0, timeout_s - (monotonic() - self._begin)))


def watched(request: ChatRequest, strategy: Strategy) -> ChatRequest:
    """The request with its tokens' certainties, where they say something: of one answer, as those of several could not be told apart."""
    return replace(request, params=replace(request.params, certainty=request.n == 1 and strategy.trust is not None))
