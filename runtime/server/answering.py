"""From a request to the model that answers it, and what all answers have in common."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from edgelm.runtime.chat_model import Asker, Event, Events, RouteDecision, Usage
from edgelm.runtime.model_pool import ModelPool, Use
from edgelm.runtime.privacy import Level
from edgelm.runtime.server.metrics import Metrics
from edgelm.runtime.server.request_log import Record

Json = dict[str, Any]


@dataclass(frozen=True)
class Envelope:
    """What all objects of one answer have in common.

    Attributes:
        prefix: of its id ("chatcmpl").
    """

    prefix: str
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, kind: str, choices: Sequence[Json], **more: Any) -> Json:
        return {"id": f"{self.prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model, "choices": choices, **more}


async def begin(
    request: Request, pool: ModelPool, metrics: Metrics, name: str, ask: Callable[[Use], Awaitable[Events]]
) -> tuple[str, Events]:
    """Ask a model, which stays loaded until the events are closed; its name, and the events."""
    use = await pool.use(name)
    try:
        events = await ask(use)
    except BaseException:
        use.release()
        raise

    def release() -> None:
        events.close()
        use.release()

    record: Record = request.state.record
    record.model = use.name
    noted = _noted(events, metrics, record, use.name)
    return use.name, Events(noted, release) if use.front is use.model else _Routed(noted, release)


async def _noted(events: Events, metrics: Metrics, record: Record, name: str) -> AsyncIterator[Event]:
    async for event in events:
        if isinstance(event, Usage):
            metrics.note(name, event)
            record.usage = event
            if record.decision is not None:
                metrics.note_route(name, record.decision)
        elif isinstance(event, RouteDecision):
            record.decision = event
        yield event


class _Routed(Events):
    """Events of a router, which may take its time to decide."""

    def __init__(self, events: AsyncIterator[Event], release: Callable[[], None]) -> None:
        super().__init__(events, release)
        self._held: deque[Event] = deque()

    async def __anext__(self) -> Event:
        return self._held.popleft() if self._held else await super().__anext__()

    async def decided(self) -> None:
        while not self._held or not isinstance(self._held[-1], RouteDecision | Usage):
            self._held.append(await super().__anext__())


def asker(request: Request, user: str | None, timeout_s: float | None, streams: bool = False, takes_restarts: bool = False) -> Asker:
    """Who asks: a user by name, or whoever is at an address; how much of it may leave this device, as their key and they themselves say.

    Args:
        takes_restarts: what was streamed can be taken back in this protocol, if the client says that it understands this.

    Raises:
        InvalidRequestError: there is no such level.
    """
    headers = request.headers
    levels = (*getattr(request.state, "levels", ()), *(Level.named(each.strip()) for each in headers.getlist(_LEVEL)))
    can_restart = takes_restarts and headers.get(_RESTARTS, "").strip().lower() in ("1", "true", "yes")
    return Asker(
        user or (request.client.host if request.client else ""),
        timeout_s,
        levels=levels,
        consent=headers.get(_CONSENT),
        reading="whole" if not streams else "restarts" if can_restart else "stream",
        request_id=request.state.record.id,
    )


_LEVEL, _CONSENT, _RESTARTS = "x-edgelm-privacy", "x-edgelm-consent", "x-edgelm-restarts"


def route_of(decision: RouteDecision) -> Json:
    """The field `edgelm` of an answer."""
    question = decision.consent
    return {
        "route": decision.route,
        "reason": decision.reason,
        "why": decision.why,
        "restart": decision.is_restart,
        "confidence": decision.confidence,
        "fault": decision.fault,
        "consent": None if question is None else {**vars(question), "entities": dict(question.entities)},
        "redacted": dict(decision.redacted),
        "samples": decision.n_samples,
        "agreement": decision.agreement,
        "local_tokens": decision.local_tokens,
        "cloud_tokens": {"input": decision.cloud_input, "output": decision.cloud_output},
        "cost": str(decision.cost),
        "currency": decision.currency,
        "seconds": {"local": round(decision.local_s, 6), "cloud": round(decision.cloud_s, 6)},
    }


def usage_of(usage: Usage) -> Json:
    """OpenAI's counts, and how fast it went."""
    n_rest = usage.n_generated - 1
    return {
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_generated,
        "total_tokens": usage.n_prompt + usage.n_generated,
        "prompt_tokens_details": {"cached_tokens": usage.n_cached},
        "timings": {
            "prefill_seconds": usage.prefill_s,
            "decode_seconds": usage.decode_s,
            "tokens_per_second": n_rest / usage.decode_s if n_rest > 0 and usage.decode_s > 0 else None,
        },
    }
