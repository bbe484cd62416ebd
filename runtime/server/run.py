"""The server, run by uvicorn until the process is told to end."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable

import uvicorn

from edgelm.errors import EdgeLMError, InvalidRequestError
from edgelm.runtime.model_pool import ModelPool
from edgelm.runtime.server.access import Access
from edgelm.runtime.server.app import create_app
from edgelm.runtime.server.connection import Connection
from edgelm.runtime.server.request_log import LOG

_IDLE_S = 10  # after which a connection without a request is closed
_LAST_WORDS_S = 5  # for clients to read how their streams ended


def run_server(
    pool: ModelPool,
    access: Access,
    port: int,
    grace_s: float,
    first: str | None,
    is_quiet: bool = False,
    logs_text: bool = False,
    close: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Listen until Ctrl-C or a termination signal; then answers may take grace_s seconds to end.

    Args:
        first: the model that is loaded at once.
        is_quiet: tell faults only on stderr, and not a line for each request.
        logs_text: tell there what is asked and answered, too.
        close: see create_app.

    Raises:
        InvalidRequestError: the address cannot be listened at.
        EdgeLMError: the first model cannot be loaded.
    """
    errors: list[EdgeLMError] = []

    def end(error: EdgeLMError) -> None:
        errors.append(error)
        server.should_exit = True

    _start_log(is_quiet)
    listener = _listen(access.host, port)
    config = uvicorn.Config(
        create_app(pool, access, first, end, logs_text, close),
        http=Connection,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=round(grace_s) + _LAST_WORDS_S,
        h11_max_incomplete_event_size=64 << 10,
    )
    server = _Server(config, pool)
    shown = f"[{access.host}]" if ":" in access.host else access.host
    url = f"http://{shown}:{listener.getsockname()[1]}"
    print(f"Listening at {url}/v1\nA page to chat with: {url}/", file=sys.stderr, flush=True)
    server.run(sockets=[listener])
    if errors:
        raise errors[0]


def _start_log(is_quiet: bool) -> None:
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    LOG.handlers = [lines]
    LOG.setLevel(logging.WARNING if is_quiet else logging.INFO)
    LOG.propagate = False


class _Server(uvicorn.Server):
    """Closes the models as soon as it is told to end, so that streams that take too long end with an error and not in the middle."""

    def __init__(self, config: uvicorn.Config, pool: ModelPool) -> None:
        super().__init__(config)
        self._pool = pool

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.create_task(self._pool.close())
        await super().shutdown(sockets)
        await closing


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise InvalidRequestError(f"{host}:{port} cannot be listened at ({error}); choose another --port or --host") from None
    return listener
