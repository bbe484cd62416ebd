"""What a model makes of text: tokens, and conversations written out by its template."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from edgelm.runtime.local_model import LocalModel
from edgelm.runtime.model_pool import ModelPool
from edgelm.runtime.server.chat_schema import ChatMessage
from edgelm.runtime.server.sampling_fields import Text
from edgelm.runtime.server.strict import Strict


class TokenizeRequest(Strict):
    """A text."""

    model: str = Field("", description="Name of the model.")
    content: Text = Field(description="The text.")
    add_special: bool = Field(False, description="Add the tokens that the model wants around a text.")
    parse_special: bool = Field(True, description="Read special tokens written in the text as such.")
    with_pieces: bool = Field(False, description="Give each token with its text.")


class DetokenizeRequest(Strict):
    """Tokens."""

    model: str = Field("", description="Name of the model.")
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(description="The tokens.")


class ApplyTemplateRequest(Strict):
    """A conversation."""

    model: str = Field("", description="Name of the model.")
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)] = Field(description="The conversation.")
    add_generation_prompt: bool = Field(True, description="End with what the model's answer follows.")


def token_routes(pool: ModelPool) -> APIRouter:
    router = APIRouter()

    @router.post("/tokenize", summary="The tokens of a text")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        def work(model: LocalModel) -> list[Any]:
            tokens = model.llm.tokenize(body.content, add_special=body.add_special, parse_special=body.parse_special)
            return [{"id": token, "piece": model.llm.detokenize([token])} for token in tokens] if body.with_pieces else tokens

        return {"tokens": await _with_model(pool, body.model, work)}

    @router.post("/detokenize", summary="The text of tokens")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        return {"content": await _with_model(pool, body.model, lambda model: model.llm.detokenize(body.tokens))}

    @router.post("/apply-template", summary="A conversation as the model reads it")
    async def apply_template(body: ApplyTemplateRequest) -> dict[str, Any]:
        messages = [message.for_template() for message in body.messages]

        def work(model: LocalModel) -> str:
            return model.llm.chat_template.render(messages, add_generation_prompt=body.add_generation_prompt)

        return {"prompt": await _with_model(pool, body.model, work)}

    return router


async def _with_model(pool: ModelPool, name: str, work: Any) -> Any:
    """What the work gives, done in a thread: long texts take their time."""
    use = await pool.use(name)
    try:
        return await asyncio.to_thread(work, use.model)
    finally:
        use.release()
