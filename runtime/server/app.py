"""The server as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from edgelm.runtime.model_pool import ModelPool
from edgelm.runtime.server.access import Access, AccessMiddleware
from edgelm.runtime.server.chat_completions import chat_routes
from edgelm.runtime.server.completions import completion_routes
from edgelm.runtime.server.error_handlers import add_error_handlers
from edgelm.runtime.server.models import model_routes
from edgelm.runtime.server.tokens import token_routes
from edgelm.version import __version__

_SWEEP_S = 5.0


def create_app(pool: ModelPool, access: Access) -> FastAPI:
    """
    Args:
        pool: the models; it is closed when the application ends.
        access: who may ask.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(pool))
        try:
            yield
        finally:
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
            await pool.close()

    app = FastAPI(
        title="edgelm", version=__version__, description="Language models on this machine, by OpenAI's protocol.", lifespan=lifespan
    )
    if access.origins:
        app.add_middleware(CORSMiddleware, allow_origins=access.origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    app.add_middleware(AccessMiddleware, access=access)
    add_error_handlers(app)
    for routes in (chat_routes, completion_routes, token_routes, model_routes):
        app.include_router(routes(pool))
    return app


async def _sweep(pool: ModelPool) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        await pool.sweep()
