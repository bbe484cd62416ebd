"""Every error of a request, whoever raises it, as one of OpenAI's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from edgelm.errors import EdgeLMError
from edgelm.runtime.server.errors import RefusedError, refusal_of


def add_error_handlers(app: FastAPI) -> None:
    """Tell the application how errors are told."""

    @app.exception_handler(RefusedError)
    async def refuse(request: Request, refusal: RefusedError) -> JSONResponse:
        kind = {"type": "error"} if request.url.path.startswith("/v1/messages") else {}  # Anthropic's clients look for it
        return JSONResponse(kind | refusal.body(), refusal.status, refusal.headers())

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

    @app.exception_handler(Exception)
    async def refuse_bug(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 (its text may hold what was asked)
        message = f"the server has a fault; its log tells more, beside {request.state.record.id}"
        return await refuse(request, RefusedError(500, message, "server_error", code="internal_error"))


def _wrong_field(error: RequestValidationError) -> RefusedError:
    """What is most wrong: of the alternatives that a field has, the one that the value comes nearest to."""
    worst = max(error.errors(), key=lambda one: (not one["type"].endswith("_type"), len(one["loc"])))
    place = ".".join(_place(worst["loc"], error.body, worst["type"] == "missing"))
    match worst["type"]:
        case "json_invalid":
            return RefusedError(400, f"the body is no JSON: {worst.get('ctx', {}).get('error', worst['msg'])}")
        case "extra_forbidden":
            return RefusedError(400, f"{place} is not supported; leave it out", param=place, code="unsupported_parameter")
        case _:
            return RefusedError(400, f"{place or 'the body'}: {worst['msg']}", param=place or None)


def _place(loc: Sequence[str | int], body: Any, is_missing: bool) -> Iterator[str]:
    """The parts of pydantic's place that are in the request, or should be; the others name alternatives of a type."""
    for i, part in enumerate(loc):
        if _is_part(part, body):
            body = body[part]
            yield str(part)
        elif is_missing and i == len(loc) - 1:
            yield str(part)


def _is_part(part: str | int, value: Any) -> bool:
    return (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int) and part < len(value))
