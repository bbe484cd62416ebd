"""POST /v1/completions: a text in, how it goes on out, whole or as chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter, Request, Response
from pydantic import Field

from edgelm.runtime.chat_model import Event, Events, Finish, TextDelta, Usage
from edgelm.runtime.model_pool import ModelPool
from edgelm.runtime.results import TokenLogprob
from edgelm.runtime.server.answering import Envelope, Json, asker, begin, usage_of
from edgelm.runtime.server.event_stream import EventStream, whole
from edgelm.runtime.server.metrics import Metrics
from edgelm.runtime.server.prompts import Prompts, as_prompts
from edgelm.runtime.server.sampling_fields import SamplingFields

_KIND = "text_completion"


class CompletionRequest(SamplingFields):
    """A text that is to go on."""

    prompt: Prompts = Field(description="A text, tokens, or several of either; the chat template is not applied.")
    max_tokens: int | None = Field(16, ge=1, description="Tokens at most; null for as many as the context holds.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Tell the log probabilities of so many likeliest tokens at each place.")


def completion_routes(pool: ModelPool, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", summary="Continue a text")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        prompts = as_prompts(body.prompt)
        params, who = body.sampling_params(body.max_tokens, body.logprobs), asker(request, body.user, body.timeout)
        name, events = await begin(request, pool, metrics, body.model, lambda use: use.model.complete(prompts, params, body.n, who))
        envelope = Envelope("cmpl", name)
        if body.stream:
            return EventStream(events, _chunks(events, envelope, body.wants_usage))
        return await whole(request, events, _completion(events, envelope, body.n * len(prompts)))

    return router


async def _chunks(events: Events, envelope: Envelope, wants_usage: bool) -> AsyncIterator[Json]:
    usage: Json = {"usage": None} if wants_usage else {}
    lengths: dict[int, int] = {}
    async for event in events:
        match event:
            case TextDelta():
                start = lengths.get(event.choice, 0)
                lengths[event.choice] = start + len(event.text)
                yield envelope.around(_KIND, [_choice(event.choice, event.text, _logprobs(event.logprobs, start))], **usage)
            case Finish():
                yield envelope.around(_KIND, [_choice(event.choice, "", None, event.reason)], **usage)
            case Usage() if wants_usage:
                yield envelope.around(_KIND, [], usage=usage_of(event))


async def _completion(events: Events, envelope: Envelope, n: int) -> Json:
    everything: list[Event] = [event async for event in events]
    choices = []
    for choice in range(n):
        deltas = [event for event in everything if isinstance(event, TextDelta) and event.choice == choice]
        (reason,) = (event.reason for event in everything if isinstance(event, Finish) and event.choice == choice)
        told = [one for delta in deltas for one in delta.logprobs or ()] if any(delta.logprobs is not None for delta in deltas) else None
        choices.append(_choice(choice, "".join(delta.text for delta in deltas), _logprobs(told, 0), reason))
    (usage,) = (event for event in everything if isinstance(event, Usage))
    return envelope.around(_KIND, choices, usage=usage_of(usage))


def _choice(index: int, text: str, logprobs: Json | None, reason: str | None = None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(told: Sequence[TokenLogprob] | None, start: int) -> Json | None:
    """The older form of log probabilities: lists with an entry for each token.

    Args:
        start: characters of the answer before them.
    """
    if told is None:
        return None
    lengths = [len(one.token) for one in told]
    return {
        "tokens": [one.token for one in told],
        "token_logprobs": [one.logprob for one in told],
        "top_logprobs": [{top.token: top.logprob for top in one.top} for one in told],
        "text_offset": [start + sum(lengths[:i]) for i in range(len(told))],
    }
