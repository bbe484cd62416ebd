"""One request to an OpenAI-compatible server, timed: when each piece of its streamed answer arrived, or what went wrong."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from edgelm.bench.load.answer import Answer
from edgelm.bench.load.events import BadAnswerError, EventDecoder
from edgelm.bench.record import Request
from edgelm.errors import InvalidRequestError, MeasurementError

Endpoint = Literal["chat", "completions"]

_PATHS: Mapping[Endpoint, str] = {"chat": "/chat/completions", "completions": "/completions"}
_DRAIN_S = 0.5
_MAX_WORDS = 300


@dataclass(frozen=True)
class Server:
    """A server, and what is asked of it.

    Attributes:
        url: up to and including the version ("http://localhost:8080/v1"); /v1 is added to an address without a path.
        endpoint: chat completions, or completions of plain text.
        model: its name there; "" for the first that the server lists.
        n_generate: most tokens of an answer.
        timeout_s: for a whole request, from the time it was due.
        ignore_eos: ask to go on after the end of the text, which vLLM and llama-server know.
        usage: ask for token counts (stream_options).
        key: sent as a bearer token; shown nowhere.
    """

    url: str
    endpoint: Endpoint = "chat"
    model: str = ""
    n_generate: int = 128
    timeout_s: float = 600.0
    ignore_eos: bool = False
    usage: bool = True
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        try:
            address = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise InvalidRequestError(f"{self.url!r} is no address ({error}); give one such as http://localhost:8080") from None
        if address.scheme not in ("http", "https") or not address.host:
            raise InvalidRequestError(f"{self.url!r} is no address of a server; give one such as http://localhost:8080")
        if address.userinfo or address.query:
            raise InvalidRequestError("the address holds a name, a password or a query, which a record would show; use --api-key-env")
        if not (self.key.isascii() and self.key.isprintable()):
            raise InvalidRequestError("the API key holds characters that no HTTP header may; look at the environment variable")

    @property
    def base(self) -> str:
        """The address that paths are added to."""
        address = httpx.URL(self.url)
        return str(address.copy_with(path="/v1" if address.path == "/" else address.path.rstrip("/")))

    def body(self, prompt: str) -> dict[str, Any]:
        """The JSON of one request."""
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]} if self.endpoint == "chat" else {"prompt": prompt}
        body = {"model": self.model, "max_tokens": self.n_generate, "temperature": 0, "stream": True} | asked
        body |= {"stream_options": {"include_usage": True}} if self.usage else {}
        return body | ({"ignore_eos": True} if self.ignore_eos else {})


class Client:
    """Sends requests to one server. All times are seconds since the origin.

    Attributes:
        server: what is asked; `connect` fills in what it learns.
        origin: of its times, by `time.perf_counter`.
        last_words: what the server said of its last error, without the key.
    """

    def __init__(self, server: Server, origin: float) -> None:
        self.server = server
        self.last_words = ""
        self.origin = origin
        headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
        # No limit of connections, or requests would queue here unseen; no proxy, which would be measured instead of the server.
        self._http = httpx.AsyncClient(
            headers=headers, timeout=None, trust_env=False, limits=httpx.Limits(max_connections=None, max_keepalive_connections=None)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.aclose()

    def now(self) -> float:
        """Seconds since the origin."""
        return time.perf_counter() - self.origin

    async def connect(self, prompt: str) -> Request:
        """Learn the model's name and whether the server counts tokens, and ask it a first time.

        Raises:
            MeasurementError: nobody answers, or the server refuses such requests.
        """
        if not self.server.model:
            self.server = replace(self.server, model=await self._first_model())
        first = await self.ask(prompt)
        if first.error in ("HTTP 400", "HTTP 422") and self.server.usage:  # it may not know stream_options
            self.server = replace(self.server, usage=False)
            first = await self.ask(prompt)
        if first.error.startswith("HTTP 4") and first.error not in ("HTTP 408", "HTTP 429"):
            raise MeasurementError(f"{self.server.base} refuses the request: {first.error} {self.last_words}".rstrip())
        if first.error == "no connection":
            raise MeasurementError(f"{self.server.base} cannot be reached ({self.last_words}); start the server, or look at the address")
        return first

    async def ask(self, prompt: str, due_s: float | None = None) -> Request:
        """Send a request and follow its answer to the end. Whatever goes wrong with it is in the result's error."""
        sent = self.now()
        due = sent if due_s is None else due_s
        answer, error = Answer(), ""
        try:
            async with asyncio.timeout(due + self.server.timeout_s - sent):
                ended = await self._follow(prompt, answer)
        except TimeoutError:
            error = "timeout in mid-stream" if answer.stamps_s else "timeout"
        except BadAnswerError as problem:
            error = str(problem)
            self._remember(problem.detail)
        except httpx.ConnectError as problem:
            error = "no connection"
            self._remember(str(problem))
        except httpx.RequestError as problem:
            error = "connection lost in mid-stream" if answer.stamps_s else "connection lost"
            self._remember(str(problem))
        counted = answer.n_generated is not None
        n_generated = answer.n_generated if answer.n_generated is not None else len(answer.stamps_s)
        if error:
            ended = self.now()
        return Request(due, sent, tuple(answer.stamps_s), ended, answer.n_prompt, n_generated, counted, error)

    async def _follow(self, prompt: str, answer: Answer) -> float:
        """Read the answer; when it was whole."""
        async with self._http.stream("POST", self.server.base + _PATHS[self.server.endpoint], json=self.server.body(prompt)) as response:
            if not response.is_success:
                raise BadAnswerError(f"HTTP {response.status_code}", (await response.aread()).decode(errors="replace"))
            if "json" in response.headers.get("content-type", ""):
                raise BadAnswerError("no event stream")
            received, decoder = response.aiter_bytes(), EventDecoder()
            ended = self.now()
            async for data in received:
                ended = self.now()
                for event in decoder.feed(data):
                    answer.take(event, ended)
                if answer.done:
                    await _drain(received)
                    break
            else:
                for event in decoder.end():
                    answer.take(event, ended)
            answer.check_whole()
            return ended

    async def _first_model(self) -> str:
        url = self.server.base + "/models"
        try:
            async with asyncio.timeout(self.server.timeout_s):
                response = await self._http.get(url)
        except (httpx.RequestError, TimeoutError) as error:
            raise MeasurementError(f"{url} does not answer ({error or 'timeout'}); start the server, or look at the address") from None
        if response.status_code in (401, 403):
            raise MeasurementError(f"{url} wants an API key: HTTP {response.status_code}; name the variable that has it with --api-key-env")
        try:
            return str(response.raise_for_status().json()["data"][0]["id"])
        except (httpx.HTTPStatusError, ValueError, LookupError, TypeError):
            raise MeasurementError(f"{url} lists no models; is this an OpenAI-compatible server? Name the model with --model") from None

    def _remember(self, words: str) -> None:
        key = self.server.key
        self.last_words = " ".join((words.replace(key, "***") if key else words).split())[:_MAX_WORDS]


async def _drain(received: AsyncIterator[bytes]) -> None:
    """Read to the end of the body, so that the connection can be used again; a server that keeps it open is not waited for."""
    with contextlib.suppress(TimeoutError, httpx.RequestError):
        async with asyncio.timeout(_DRAIN_S):
            async for _ in received:
                pass
