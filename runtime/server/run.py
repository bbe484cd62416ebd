"""An application, served by uvicorn until the process is told to end."""

from __future__ import annotations

import socket
import sys

import uvicorn
from starlette.types import ASGIApp

from edgelm.errors import InvalidRequestError

_HEADERS_S = 10  # idle connections are closed after so long, and so are those that never finish their headers


def run_server(app: ASGIApp, host: str, port: int, grace_s: float) -> None:
    """Listen until Ctrl-C or a termination signal; then answers may take grace_s seconds to end.

    Raises:
        InvalidRequestError: the address cannot be listened at.
    """
    listener = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    print(f"Listening at http://{shown}:{listener.getsockname()[1]}/v1", file=sys.stderr, flush=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=_HEADERS_S,
        timeout_graceful_shutdown=max(1, round(grace_s)),
        h11_max_incomplete_event_size=64 << 10,
    )
    uvicorn.Server(config).run(sockets=[listener])


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
