"""The one door out: no other code of edgelm can open a connection to a cloud (`lint-imports` keeps the HTTP client out of all others).

What goes through carries a permit of the policy, which is checked again at each attempt and while the answer is read. It is written into
the log, and is on the disk there, before a byte leaves.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import SplitResult, urlsplit

from edgelm.errors import CloudError, InvalidRequestError
from edgelm.runtime.loopback import is_loopback
from edgelm.runtime.router.cloud_request import FIELDS
from edgelm.runtime.router.policy import Permit, Policy
from edgelm.runtime.router.retry import retry_after_s

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class Limits:
    """Of one attempt.

    Attributes:
        connect_s: until there is a connection.
        silence_s: for which the endpoint may send nothing.
        n_bytes: of an answer, at most.
    """

    connect_s: float = 10.0
    silence_s: float = 30.0
    n_bytes: int = 16 << 20


@dataclass(frozen=True)
class Address:
    """Where an endpoint is.

    Attributes:
        url: that is posted to.
        key: gives the API key when it is needed; None for none. It goes into the Authorization header and nowhere else.
        proxy: through which it is reached; None for none. The environment's proxies are not asked: who sees the bytes, the owner says.

    Raises:
        InvalidRequestError: the key and the text could be read on the way, or the address is none.
    """

    url: str
    key: Callable[[], str | None] = field(default=lambda: None, repr=False)
    proxy: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if not _URL.fullmatch(self.url) or not parts.hostname or parts.fragment or not _has_port(parts):
            raise InvalidRequestError("the endpoint's address is none, or holds a password; write https://host/v1, with the key elsewhere")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise InvalidRequestError(
                f"{self.url!r:.120} is not encrypted; use https, as anybody on the way could read the text and the key"
            )

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


_URL = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|(?!.*\.\.)[A-Za-z0-9.-]+)(?::\d{1,5})?(?:/[!-~]*)?")


def _has_port(parts: SplitResult) -> bool:
    """Whether its port, or the usual one, can be one."""
    try:
        return parts.port != 0
    except ValueError:
        return False


class Response:
    """An endpoint's answer, while it is read.

    Attributes:
        kind: its media type, in small letters.
        digest: SHA-256 of what was read.
        n_bytes: read so far.
    """

    def __init__(self, response: httpx.Response, limits: Limits, still_holds: Callable[[], None], deadline: float) -> None:
        self.kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self.digest = hashlib.sha256()
        self.n_bytes = 0
        self._pieces = aiter(response.aiter_raw())
        self._limits = limits
        self._still_holds = still_holds
        self._deadline = deadline

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises:
            CloudError: it is larger than an answer may be, or takes too long.
            EgressRefusedError: the permit no longer holds.
        """
        while True:
            self._still_holds()
            async with _in_time(self._deadline):
                piece = await anext(self._pieces, None)
            if piece is None:
                return
            self.digest.update(piece)
            self.n_bytes += len(piece)
            if self.n_bytes > self._limits.n_bytes:
                raise CloudError(f"the endpoint's answer is larger than {self._limits.n_bytes:,} bytes", "too large")
            yield piece


class Egress:
    """The door to one address, for one event loop. Nothing is connected, and no client made, before the first permit."""

    def __init__(self, address: Address, policy: Policy, limits: Limits | None = None) -> None:
        self.address = address
        self._policy = policy
        self._limits = limits or Limits()
        self._client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def post(self, permit: Permit, body: bytes, deadline: float) -> AsyncIterator[Response]:
        """Send the body once; the answer, if it is a good one.

        Args:
            deadline: by the event loop's clock, for all of it.

        Raises:
            EgressRefusedError: the permit is not for this, or does not hold.
            CloudError: the endpoint cannot be reached, refuses, is silent, or breaks off.
        """
        import httpx

        self._policy.check(permit, self.address.url, body)
        client, key = self._open_client(), await asyncio.to_thread(self.address.key)
        bearer = {} if key is None else {"Authorization": f"Bearer {key}"}
        request = client.build_request("POST", self.address.url, content=body, headers={"Content-Type": "application/json", **bearer})
        try:
            async with _in_time(deadline):
                response = await client.send(request, stream=True)
            try:
                await self._refuse(response)
                yield Response(response, self._limits, lambda: self._policy.still_holds(permit), deadline)
            finally:
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            raise CloudError(f"{self.address.origin} cannot be reached ({type(error).__name__})", "refused", may_be_billed=False) from None
        except httpx.TimeoutException:
            raise CloudError(f"{self.address.origin} sent nothing for {self._limits.silence_s:g} s", "timeout") from None
        except httpx.TransportError as error:  # without its text, which may hold what was sent
            raise CloudError(f"{self.address.origin} broke the connection off ({type(error).__name__})", "broken off") from None

    def prepare(self) -> None:
        """Load what the first request needs, so that it does not wait; nothing is connected."""
        import httpx  # noqa: F401

    async def _refuse(self, response: httpx.Response) -> None:
        status, origin = response.status_code, self.address.origin
        if 300 <= status < 400:
            raise CloudError(
                f"{origin} points elsewhere (HTTP {status}), which is not followed; give the address itself", "redirect", False
            )
        if status >= 400 or status < 200:
            # by these statuses an endpoint says that it has computed nothing; after any other it may have
            wait = retry_after_s(response.headers.get("retry-after"))
            text = f"{origin} answered HTTP {status}{await _told(response)}{_ADVICE.get(status, '')}"
            raise CloudError(text, "status", status not in _UNBILLED, wait, status)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise CloudError(f"{origin} compressed its answer, though it was asked not to", "malformed")

    def _open_client(self) -> httpx.AsyncClient:
        if self._client is None:
            import httpx

            limits = self._limits
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(limits.silence_s, connect=limits.connect_s),
                headers={"Accept-Encoding": "identity", "User-Agent": "edgelm"},
                follow_redirects=False,
                trust_env=False,
                proxy=self.address.proxy,
            )
        return self._client

    async def close(self) -> None:
        """Close its connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await asyncio.shield(self.close())


@asynccontextmanager
async def _in_time(deadline: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise CloudError("the endpoint's answer took too long", "timeout") from None


_UNBILLED = frozenset({400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 503, 529})


_ADVICE = {401: "; check the API key", 403: "; check the API key", 404: "; check the address and the model", 429: " (rate limit)"}
_MOST_TOLD = 16 << 10
_TOLD_S = 1.0
_CODE = re.compile(r"[a-z]+(_[a-z]+)+")  # "model_not_found"; anything else may repeat what was sent


async def _told(response: httpx.Response) -> str:
    """The codes of an error, as ", unsupported_value (temperature)"; not its text, which may repeat what was sent, or the key."""
    import httpx

    body = b""
    try:
        async with asyncio.timeout(_TOLD_S):
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > _MOST_TOLD:
                    return ""
    except (TimeoutError, httpx.TransportError):
        return ""  # the status says enough
    try:
        error = json.loads(body)["error"]
        codes = [each for each in (error.get("code"), error.get("type")) if isinstance(each, str) and _CODE.fullmatch(each)]
        param = error.get("param")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    return "".join([*(f", {code}" for code in codes[:1]), *([f" ({param})"] if param in FIELDS else [])])
