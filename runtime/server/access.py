"""Who may ask, and how much: checks of each request before anything reads it."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgelm.errors import InvalidRequestError
from edgelm.runtime.loopback import is_loopback
from edgelm.runtime.privacy import Level
from edgelm.runtime.server.errors import RefusedError

_OPEN_PATHS = frozenset({"/", "/health", "/docs", "/openapi.json"})  # what a browser fetches without a key, and monitors
_OPEN_FOLDERS = ("/web/", "/docs/")


@dataclass(frozen=True)
class Access:
    """The rules.

    Attributes:
        host: address that the server listens at.
        keys: any of which opens the server; none for no key at all, which is for loopback addresses only.
        origins: web pages, as "https://name", that browsers may let ask; the server's own always may.
        max_body: bytes of a request at most.
        levels: how much requests with these keys may let out of this device; of any other key, whatever the deployment allows.

    Raises:
        InvalidRequestError: others than this machine could ask without a key.
    """

    host: str = "127.0.0.1"
    keys: Sequence[str] = field(default=(), repr=False)
    origins: Sequence[str] = ()
    max_body: int = 8 << 20
    levels: Mapping[str, Level] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.keys and not is_loopback(self.host):
            raise InvalidRequestError(
                f"{self.host} can be reached from other machines; give an API key (--api-key-file, or EDGELM_API_KEY), "
                "or listen at 127.0.0.1"
            )
        if any(not (key.isascii() and key.isprintable() and key) for key in self.keys):
            raise InvalidRequestError("an API key is empty or holds characters that no HTTP header may; choose another one")

    def check(self, method: str, path: str, headers: Headers) -> tuple[Level, ...]:
        """How much the request may let out, as far as its key has a say.

        Raises:
            RefusedError: the request may not be answered.
        """
        host = _host_of(headers.get("host", ""))
        if is_loopback(self.host) and not is_loopback(host):  # a page that has its own name point here (DNS rebinding)
            raise RefusedError(403, f"the Host header names {host!r:.80}; ask for 127.0.0.1 or localhost", "permission_error")
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins and urlsplit(origin).netloc != headers.get("host"):
            raise RefusedError(
                403, f"pages of {origin!r:.80} may not ask; start the server with --allow-origin to let them", "permission_error"
            )
        asks_first = method == "OPTIONS" and origin is not None  # a browser's preflight cannot carry a key
        is_open = path in _OPEN_PATHS or path.startswith(_OPEN_FOLDERS)
        fitting = self._fitting(headers)
        if self.keys and not is_open and not asks_first and not fitting:
            raise RefusedError(
                401, "the API key is missing or wrong; send it as Authorization: Bearer KEY", "authentication_error", code="invalid_api_key"
            )
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.max_body:
            raise self.too_large()
        return tuple(self.levels[key] for key in fitting if key in self.levels)

    def too_large(self) -> RefusedError:
        return RefusedError(413, f"the request is larger than {self.max_body:,} bytes; send less", code="request_too_large")

    def _fitting(self, headers: Headers) -> list[str]:
        """The keys that the request has."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # all of them are compared, so that it takes the same time
        return [key for key in self.keys if hmac.compare_digest(given.encode(), key.encode())]


def _host_of(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


class AccessMiddleware:
    """Applies the rules, as ASGI; a body without a length is counted as it comes."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        n_bytes = 0

        async def counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._access.max_body:
                raise self._access.too_large()
            return message

        try:
            scope.setdefault("state", {})["levels"] = self._access.check(scope["method"], scope["path"], Headers(scope=scope))
            await self._app(scope, counted, send)
        except RefusedError as refusal:
            await JSONResponse(refusal.body(), refusal.status, refusal.headers())(scope, receive, send)
        return None
