"""POST /v1/embeddings: texts in, vectors out."""

from __future__ import annotations

import asyncio
import base64
from threading import Event
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import Field

from edgelm.runtime.model_pool import ModelPool
from edgelm.runtime.server.answering import Json
from edgelm.runtime.server.event_stream import as_json, unless_gone
from edgelm.runtime.server.prompts import Prompts, as_prompts
from edgelm.runtime.server.strict import Strict


class EmbeddingRequest(Strict):
    """Texts that want vectors."""

    model: str = Field("", description="Name of the model; the first one where it is not given.")
    input: Prompts = Field(description="A text, tokens, or several of either.")
    encoding_format: Literal["float", "base64"] = Field("float", description="Numbers, or base64 of little-endian float32.")
    user: str | None = Field(None, max_length=512, description="Taken, and of no effect here.")


def embedding_routes(pool: ModelPool) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/embeddings", summary="A vector for each text, of length 1")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        use = await pool.use(body.model)
        cancelled = Event()
        try:
            result = await unless_gone(request.receive, asyncio.to_thread(use.model.embed, as_prompts(body.input), cancelled))
        finally:
            cancelled.set()
            use.release()
        if result is None:
            return Response(status_code=499)
        vectors, n_tokens = result
        data = [
            {"object": "embedding", "index": i, "embedding": _encoded(vector, body.encoding_format)} for i, vector in enumerate(vectors)
        ]
        usage: Json = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        return Response(as_json({"object": "list", "model": use.name, "data": data, "usage": usage}), media_type="application/json")

    return router


def _encoded(vector: np.ndarray[Any, np.dtype[np.float32]], how: Literal["float", "base64"]) -> list[float] | str:
    return vector.tolist() if how == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()
