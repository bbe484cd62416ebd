"""From a request to the model that answers it, and what all answers have in common."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from edgelm.runtime.chat_model import Asker, Event, Events, Usage
from edgelm.runtime.local_model import LocalModel
from edgelm.runtime.model_pool import ModelPool
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
    request: Request, pool: ModelPool, metrics: Metrics, name: str, ask: Callable[[LocalModel], Awaitable[Events]]
) -> tuple[str, Events]:
    """Ask a model, which stays loaded until the events are closed; its name, and the events."""
    use = await pool.use(name)
    try:
        events = await ask(use.model)
    except BaseException:
        use.release()
        raise

    def release() -> None:
        events.close()
        use.release()

    record: Record = request.state.record
    record.model = use.name
    return use.name, Events(_noted(events, metrics, record, use.name), release)


async def _noted(events: Events, metrics: Metrics, record: Record, name: str) -> AsyncIterator[Event]:
    async for event in events:
        if isinstance(event, Usage):
            metrics.note(name, event)
            record.usage = event
        yield event


def asker(request: Request, user: str | None, timeout_s: float | None) -> Asker:
    """Who asks: a user by name, or whoever is at an address."""
    return Asker(user or (request.client.host if request.client else ""), timeout_s)


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
