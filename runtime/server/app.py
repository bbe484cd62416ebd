"""The server as an ASGI application: which address is answered by what."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from edgelm.errors import EdgeLMError
from edgelm.runtime.chat_model import Asker
from edgelm.runtime.local_model import LocalModel
from edgelm.runtime.server.access import Access, AccessMiddleware
from edgelm.runtime.server.chat_completions import Envelope, chat_chunks, chat_completion, chat_request
from edgelm.runtime.server.chat_schema import ChatCompletionRequest
from edgelm.runtime.server.errors import RefusedError, refusal_of
from edgelm.runtime.server.event_stream import EventStream, whole
from edgelm.version import __version__


def create_app(name: str, model: LocalModel, access: Access) -> FastAPI:
    """
    Args:
        name: of the model, for those who ask.
        model: who answers; it stays the caller's, to be closed after the server.
        access: who may ask.
    """
    app = FastAPI(title="edgelm", version=__version__, description="Language models on this machine, by OpenAI's protocol.")
    if access.origins:
        app.add_middleware(CORSMiddleware, allow_origins=access.origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    app.add_middleware(AccessMiddleware, access=access)
    created = int(time.time())

    def card() -> dict[str, Any]:
        info = model.llm.info
        sizes = {"n_ctx": info.n_ctx, "n_vocab": info.n_vocab, "n_embd": info.n_embd, "backend": info.backend}
        return {"id": name, "object": "model", "created": created, "owned_by": "edgelm", "meta": sizes}

    def check_name(asked: str) -> None:
        if asked not in ("", name):
            raise RefusedError(404, f"there is no model {asked!r:.80}; this server has {name}", param="model", code="model_not_found")

    @app.get("/health", summary="Whether requests can be answered")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models", summary="The models that can be asked")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [card()]}

    @app.get("/v1/models/{model_id:path}", summary="One model")
    async def get_model(model_id: str) -> dict[str, Any]:
        check_name(model_id)
        return card()

    @app.post("/v1/chat/completions", summary="Answer a conversation")
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        check_name(body.model)
        asker = Asker(body.user or _client(request), body.timeout)
        events = await model.chat(chat_request(body), asker)
        envelope = Envelope.new("chatcmpl", uuid.uuid4().hex, name)
        if body.stream:
            wants_usage = body.stream_options is not None and body.stream_options.include_usage
            return EventStream(chat_chunks(events, envelope, body.n, wants_usage))
        return await whole(request, chat_completion(events, envelope, body.n))

    @app.exception_handler(RefusedError)
    async def refuse(_request: Request, refusal: RefusedError) -> JSONResponse:
        return JSONResponse(refusal.body(), refusal.status, refusal.headers())

    @app.exception_handler(EdgeLMError)
    async def refuse_error(request: Request, error: EdgeLMError) -> JSONResponse:
        return await refuse(request, refusal_of(error))

    @app.exception_handler(RequestValidationError)
    async def refuse_fields(request: Request, error: RequestValidationError) -> JSONResponse:
        return await refuse(request, _wrong_field(error))

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, RefusedError):  # raised by AccessMiddleware while FastAPI read the body
            return await refuse(request, error.__cause__)
        return await refuse(request, RefusedError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))

    return app


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


def _wrong_field(error: RequestValidationError) -> RefusedError:
    """What is most wrong: of the alternatives that a field has, the one that the value comes nearest to."""
    worst = max(error.errors(), key=lambda one: (not one["type"].endswith("_type"), len(one["loc"])))
    place = ".".join(_place(worst["loc"], error.body))
    match worst["type"]:
        case "json_invalid":
            return RefusedError(400, f"the body is no JSON: {worst.get('ctx', {}).get('error', worst['msg'])}")
        case "extra_forbidden":
            return RefusedError(400, f"{place} is not supported; leave it out", param=place, code="unsupported_parameter")
        case _:
            return RefusedError(400, f"{place or 'the body'}: {worst['msg']}", param=place or None)


def _place(loc: Sequence[str | int], body: Any) -> Iterator[str]:
    """The parts of pydantic's place that are in the request; the others name alternatives of a type."""
    *parents, last = (part for part in loc if part != "body") if len(loc) > 1 else ("",)
    for part in parents:
        if _is_part(part, body):
            body = body[part]
            yield str(part)
    if last != "" and (_is_part(last, body) or isinstance(body, dict)):  # a field that is missing
        yield str(last)


def _is_part(part: str | int, value: Any) -> bool:
    return (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int) and part < len(value))
