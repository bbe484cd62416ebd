"""The OpenAPI document: FastAPI's, with the errors that this server gives in place of those that it does not."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "description": "What was wrong.",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What was wrong, and what to do."},
                "type": {"type": "string", "description": "The kind of error, as OpenAI names it."},
                "param": {"type": ["string", "null"], "description": "The field that is wrong."},
                "code": {"type": ["string", "null"], "description": "The error, for programs."},
            },
        }
    },
}
_STATUS = {
    "400": "A field is wrong or unknown, or the prompt does not fit the context.",
    "401": "The API key is missing or wrong.",
    "403": "The Host or Origin header names somebody who may not ask.",
    "404": "There is no such model.",
    "408": "The request's own timeout has passed.",
    "413": "The request is too large.",
    "429": "Too many requests wait; Retry-After says when to ask again.",
    "503": "The model is being closed, or memory is short; Retry-After says when to ask again.",
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas["Error"] = _ERROR
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                operation["responses"] |= {status: {"description": what, "content": content} for status, what in _STATUS.items()}
        app.openapi_schema = document
    return app.openapi_schema
