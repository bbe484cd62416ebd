"""A ChatModel that answers on this device, knows when its answer is not to be trusted, and asks a cloud where its owner allows it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from edgelm.errors import ContextOverflowError
from edgelm.runtime.chat_model import Asker, ChatModel, ChatRequest, Event, Events
from edgelm.runtime.privacy import Level
from edgelm.runtime.router.asking import Asking, AskPerson, digest_of
from edgelm.runtime.router.cloud import CloudEndpoint
from edgelm.runtime.router.cloud_request import not_for_cloud
from edgelm.runtime.router.entities import CoreRecognizer
from edgelm.runtime.router.policy import Policy
from edgelm.runtime.router.redact import Redactor
from edgelm.runtime.router.routing import Plan, Routing, watched
from edgelm.runtime.router.signals import Signals, signals_of
from edgelm.runtime.router.strategy import Strategy


class Router:
    """Local first.

    Args:
        local: the model on this device.
        cloud: the endpoint elsewhere; None where there is none, and where the policy's level is never.
        policy: what may leave; the one that the endpoint was made with.
        strategy: when an answer is not enough.
        redactor: replaces personal data where the level asks for it.
        ask_person: asks a person for consent at once; None leaves the question in the answer.
    """

    def __init__(
        self,
        local: ChatModel,
        cloud: CloudEndpoint | None,
        policy: Policy,
        strategy: Strategy | None = None,
        redactor: Redactor | None = None,
        ask_person: AskPerson | None = None,
    ) -> None:
        self.local = local
        self.cloud = None if policy.level is Level.NEVER else cloud
        self.policy = policy
        self.strategy = strategy or Strategy()
        self.redactor = redactor or Redactor((CoreRecognizer(),))
        self.ask_person = ask_person

    async def chat(self, request: ChatRequest, asker: Asker) -> Events:
        """As ChatModel.chat. The events tell, by RouteDecisions, who answers."""
        signals = signals_of(request.messages, request.tools.tools if request.tools else None)
        plan, asking = self._plan(request, asker, signals)
        events: Events | None = None
        if plan.first == "local":
            events, plan = await self._begin_here(request, asker, plan, asking)
        said: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        routing = Routing(self.local, self.strategy, request, asker, plan, asking, said.put_nowait)
        task = asyncio.create_task(_run(routing, events, said))

        def release() -> None:
            task.cancel()
            if events is not None:
                events.close()  # a task that is cancelled before its first step does not come to do it

        return Events(_taken(said), release)

    async def _begin_here(self, request: ChatRequest, asker: Asker, plan: Plan, asking: Asking | None) -> tuple[Events | None, Plan]:
        try:
            return await self.local.chat(watched(request, self.strategy), asker), plan
        except ContextOverflowError:
            if asking is None:
                raise
            return None, Plan("cloud", "too long", "the conversation is too long for the model on this device")

    def _plan(self, request: ChatRequest, asker: Asker, signals: Signals) -> tuple[Plan, Asking | None]:
        """Who is asked first, before anything is computed; and how the cloud is asked, if it may be."""
        if (reason := not_for_cloud(request)) is not None:
            return Plan("local", "local only", reason), None
        if self.cloud is None:
            return Plan("local", "no cloud", "there is no cloud endpoint, or the privacy level is never"), None
        verdict = self.policy.judge(asker.levels)
        if verdict.refusal is not None:
            return Plan("local", "not allowed", verdict.refusal), None
        text = "\n".join(_texts(request))
        fitting = [rule for rule in self.strategy.rules if rule.fits(signals, text)]
        for rule in fitting:
            if rule.answer == "local":
                return Plan("local", "rule", f"the rule {rule.name!r} keeps it on this device"), None
        request_id = asker.request_id or uuid.uuid4().hex
        asking = Asking(self.cloud, self.policy, self.redactor, self.ask_person, request, asker, request_id)
        if asker.consent is not None and self.policy.consents(asker.consent, digest_of(request, verdict.redacts)):
            return Plan("cloud", "consent", "a person has agreed", has_consent=True), asking
        for rule in fitting:
            return Plan("cloud", "rule", f"the rule {rule.name!r} asks the cloud first"), asking
        return self._by_difficulty(signals), asking

    def _by_difficulty(self, signals: Signals) -> Plan:
        difficulty, least = self.strategy.difficulty, self.strategy.ask_first_above
        if difficulty is not None and least is not None and (gain := difficulty.gain(signals)) > least:
            why = ", ".join(difficulty.explain(signals))
            return Plan("cloud", "difficult", f"asking the cloud is expected to gain {gain:.2f}: {why}")
        return Plan("local", "local first", "answers are made on this device first")

    async def close(self) -> None:
        """Close the connections to the cloud. The local model is its owner's."""
        if self.cloud is not None:
            await self.cloud.close()


async def _run(routing: Routing, events: Events | None, said: asyncio.Queue[Event | BaseException | None]) -> None:
    try:
        await routing.run(events)
        said.put_nowait(None)
    except Exception as error:  # noqa: BLE001  (whoever reads the events gets it)
        said.put_nowait(error)
    finally:
        if events is not None:
            events.close()


async def _taken(said: asyncio.Queue[Event | BaseException | None]) -> AsyncIterator[Event]:
    while (what := await said.get()) is not None:
        if isinstance(what, BaseException):
            raise what
        yield what


def _texts(request: ChatRequest) -> Iterator[str]:
    """All that would leave, for rules to look at."""
    for message in request.messages:
        content: Any = message.get("content")
        if isinstance(content, str):
            yield content
        elif isinstance(content, Sequence):
            yield from (part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
        for call in message.get("tool_calls") or ():
            yield str(call["function"].get("arguments"))
    yield from request.params.stop_strings
    if request.params.form is not None:
        yield request.params.form.text
    for tool in request.tools.tools if request.tools else ():
        yield json.dumps(tool.described(), ensure_ascii=False)
