"""Errors as OpenAI's clients expect them: a status, and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgelm.errors import (
    BusyError,
    ClosedError,
    ContextOverflowError,
    DeadlineError,
    EdgeLMError,
    InsufficientMemoryError,
    InvalidRequestError,
    TemplateError,
    UnknownModelError,
)

_RETRY_S = 5


@dataclass(eq=False)
class RefusedError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        message: what was wrong and what to do.
        kind: OpenAI's "type".
        param: the field of the request that is wrong.
        code: for programs.
        retry_s: seconds after which to ask again.
        more: further fields of the error.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_s: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code, **self.more}}

    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_s is None else {"Retry-After": str(self.retry_s)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def refusal_of(error: EdgeLMError) -> RefusedError:
    """How an error of edgelm is told over HTTP."""
    text = str(error)
    match error:
        case ContextOverflowError():
            counts = {"n_prompt_tokens": error.n_prompt_tokens, "n_ctx": error.n_ctx}
            return RefusedError(400, text, code="context_length_exceeded", more=counts)
        case UnknownModelError():
            return RefusedError(404, text, param="model", code="model_not_found")
        case InvalidRequestError() | TemplateError():
            return RefusedError(400, text)
        case BusyError():
            return RefusedError(429, text, "rate_limit_error", code="busy", retry_s=_RETRY_S)
        case DeadlineError():
            return RefusedError(408, text, "timeout_error", code="timeout")
        case ClosedError() | InsufficientMemoryError():
            return RefusedError(503, text, "server_error", code="unavailable", retry_s=_RETRY_S)
        case _:
            return RefusedError(500, text, "server_error")
