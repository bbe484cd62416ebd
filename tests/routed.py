"""A router over a model that says what it is told, and a cloud on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from byte_model import byte_metadata, says
from cloud_server import CloudServer

from edgelm.backends.scripted import Script, ScriptedBackend
from edgelm.runtime.certainty import TokenCertainty
from edgelm.runtime.chat_model import Asker, ChatModel, ChatRequest, Event, RouteDecision, TextDelta, ToolCallDelta
from edgelm.runtime.llm import LLM
from edgelm.runtime.local_model import LocalModel
from edgelm.runtime.privacy import Level
from edgelm.runtime.router.amounts import BudgetLimits, Price
from edgelm.runtime.router.asking import AskPerson
from edgelm.runtime.router.budget import Budget
from edgelm.runtime.router.cloud import CloudEndpoint, Endpoint
from edgelm.runtime.router.egress import Address, Limits
from edgelm.runtime.router.egress_log import EgressLog
from edgelm.runtime.router.egress_record import Record
from edgelm.runtime.router.egress_verify import read
from edgelm.runtime.router.ledger import Ledger
from edgelm.runtime.router.policy import Policy
from edgelm.runtime.router.redact import Redactor
from edgelm.runtime.router.retry import Backoff
from edgelm.runtime.router.router import Router
from edgelm.runtime.router.strategy import Strategy
from edgelm.runtime.sampling import SamplingParams

LOCAL = "from this device"
Reading = Literal["whole", "stream", "restarts"]


@dataclass(frozen=True)
class FixedTrust:
    """Trusts every answer as much as it is told."""

    confidence: float | None = 0.1
    first_look: float | None = 0.5
    n_early: int = 4
    hopeless: float = 0.05
    threshold: float = 0.7
    verifies: bool = False

    def early(self, certainties: Sequence[TokenCertainty]) -> float | None:
        assert len(certainties) == self.n_early
        return self.first_look

    def of(self, certainties: Sequence[TokenCertainty], text: str) -> float | None:
        assert certainties
        assert isinstance(text, str)
        return self.confidence

    def verified(self, confidence: float, said_yes: float) -> float | None:
        assert confidence == self.confidence
        return said_yes


DOUBTS = Strategy(trust=FixedTrust(), thinking="off")
"""Asks the cloud for every answer."""


@dataclass
class Heard:
    """What a reader of the events had in the end.

    Attributes:
        text: what is on their screen.
        texts: what was there at each restart, and at the end.
        told: the last decision.
    """

    events: list[Event]
    texts: list[str] = field(default_factory=lambda: [""])
    calls: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for event in self.events:
            match event:
                case RouteDecision(is_restart=True):
                    self.texts.append("")
                    self.calls.clear()
                case TextDelta():
                    self.texts[-1] += event.text
                case ToolCallDelta(_, piece):
                    self.calls[piece.index] = self.calls.get(piece.index, "") + piece.arguments

    @property
    def text(self) -> str:
        return self.texts[-1]

    @property
    def decisions(self) -> list[RouteDecision]:
        return [event for event in self.events if isinstance(event, RouteDecision)]

    @property
    def told(self) -> RouteDecision:
        return self.decisions[-1]


def local_model(script: Script | str = LOCAL, n_ctx: int = 2048) -> LocalModel:
    """A model that says its script."""
    metadata = byte_metadata()
    backend = ScriptedBackend(says(script) if isinstance(script, str) else script, n_vocab=258, n_ctx=n_ctx)
    from edgelm.runtime.tokenizer import Tokenizer

    return LocalModel(LLM.from_parts(backend, Tokenizer.from_metadata(metadata), metadata))


@dataclass
class Routed:
    """A router and what it leaves behind.

    Attributes:
        folder: of the budget and the log.
    """

    folder: Path
    url: str
    level: Level = Level.ALLOW
    strategy: Strategy = DOUBTS
    limits: BudgetLimits = BudgetLimits()  # noqa: RUF009
    price: Price = Price(1, 2)  # noqa: RUF009
    egress: Limits = Limits(connect_s=1.0, silence_s=0.5)  # noqa: RUF009
    timeout_s: float = 5.0
    key: Callable[[], str | None] = lambda: "sk-secret"
    ask_person: AskPerson | None = None
    local: ChatModel | None = None
    most_tokens: int = 64
    redactor: Redactor | None = None

    def __post_init__(self) -> None:
        self.policy = Policy(self.level)
        self.budget = Budget(self.folder / "budget.sqlite", self.limits, self.price)
        self.log = EgressLog(self.folder / "egress.jsonl")
        address = Address(f"{self.url}/chat/completions", self.key)
        endpoint = Endpoint(
            address, "strong", self.most_tokens, self.timeout_s, limits=self.egress, backoff=Backoff(attempts=3, first_s=0.01, most_s=0.02)
        )
        self.cloud = CloudEndpoint(endpoint, self.policy, Ledger(self.budget, self.log))
        self.model = self.local or local_model()
        self.router = Router(self.model, self.cloud, self.policy, self.strategy, self.redactor, self.ask_person)

    @property
    def records(self) -> list[Record]:
        return list(read(self.folder / "egress.jsonl")) if (self.folder / "egress.jsonl").exists() else []

    def ask(self, request: ChatRequest | str = "What is it?", asker: Asker | None = None, **changes: Any) -> Heard:
        """One answer, to its end."""
        levels = (changes.pop("level"),) if "level" in changes else ()
        return self.ask_all([request], asker or Asker(levels=levels, **changes))[0]

    def ask_all(self, requests: Sequence[ChatRequest | str], asker: Asker) -> list[Heard]:
        """Several at once."""

        async def one(request: ChatRequest | str) -> Heard:
            events = await self.router.chat(asked(request), asker)
            try:
                return Heard([event async for event in events])
            finally:
                events.close()

        async def play() -> list[Heard]:
            try:
                return list(await asyncio.gather(*map(one, requests)))
            finally:
                await self.router.close()

        return asyncio.run(play())


def asked(request: ChatRequest | str) -> ChatRequest:
    """A question as a request."""
    if isinstance(request, str):
        return ChatRequest([{"role": "user", "content": request}], SamplingParams(temperature=0.0, max_tokens=48))
    return replace(request)


def whole(server: CloudServer, folder: Path, **changes: Any) -> Routed:
    """A router that asks this server."""
    return Routed(folder, server.url, **changes)
