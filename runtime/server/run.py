"""The server, run by uvicorn until the process is told to end."""

from __future__ import annotations

import asyncio
import socket
import sys

import uvicorn

from edgelm.errors import EdgeLMError, InvalidRequestError
from edgelm.runtime.model_pool import ModelPool
from edgelm.runtime.server.access import Access
from edgelm.runtime.server.app import create_app

_HEADERS_S = 10  # idle connections are closed after so long, and so are those that never finish their headers

_LAST_WORDS_S = 5  # for clients to read how their streams ended


def run_server(pool: ModelPool, access: Access, port: int, grace_s: float, first: str | None) -> None:
    """Listen until Ctrl-C or a termination signal; then answers may take grace_s seconds to end.

    Args:
        first: the model that is loaded at once.

    Raises:
        InvalidRequestError: the address cannot be listened at.
        EdgeLMError: the first model cannot be loaded.
    """
    errors: list[EdgeLMError] = []

    def end(error: EdgeLMError) -> None:
        errors.append(error)
        server.should_exit = True

    listener = _listen(access.host, port)
    config = uvicorn.Config(
        create_app(pool, access, first, end),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=_HEADERS_S,
        timeout_graceful_shutdown=round(grace_s) + _LAST_WORDS_S,
        h11_max_incomplete_event_size=64 << 10,
    )
    server = _Server(config, pool)
    shown = f"[{access.host}]" if ":" in access.host else access.host
    print(f"Listening at http://{shown}:{listener.getsockname()[1]}/v1", file=sys.stderr, flush=True)
    server.run(sockets=[listener])
    if errors:
        raise errors[0]


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
