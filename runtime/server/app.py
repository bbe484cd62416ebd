"""The server as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from edgelm.errors import EdgeLMError
from edgelm.runtime.model_pool import ModelPool
from edgelm.runtime.server.access import Access, AccessMiddleware
from edgelm.runtime.server.chat_completions import chat_routes
from edgelm.runtime.server.completions import completion_routes
from edgelm.runtime.server.description import describe
from edgelm.runtime.server.embeddings import embedding_routes
from edgelm.runtime.server.error_handlers import add_error_handlers
from edgelm.runtime.server.messages import message_routes
from edgelm.runtime.server.metrics import Metrics
from edgelm.runtime.server.models import model_routes
from edgelm.runtime.server.request_log import RequestLog
from edgelm.runtime.server.responses import response_routes
from edgelm.runtime.server.tokens import token_routes
from edgelm.runtime.server.web_page import page_routes
from edgelm.version import __version__

_SWEEP_S = 5.0


Failed = Callable[[EdgeLMError], None]


def create_app(
    pool: ModelPool,
    access: Access,
    first: str | None = None,
    failed: Failed | None = None,
    logs_text: bool = False,
    close: Callable[[], Awaitable[None]] | None = None,
) -> ASGIApp:
    """
    Args:
        pool: the models; it is closed when the application ends.
        access: who may ask.
        first: the model to load at the beginning, while others may wait already.
        failed: told if it cannot be loaded.
        logs_text: log what is asked and answered, too.
        close: called at the end, in the same event loop.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_sweep(pool))]
        if first is not None:
            tasks.append(asyncio.create_task(_load(pool, first, failed)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await pool.close()
            if close is not None:
                await close()

    app = FastAPIOffline(  # FastAPI's own page at /docs would have visitors' browsers fetch it from elsewhere
        title="edgelm",
        version=__version__,
        description="Language models on this machine, by OpenAI's protocol.",
        lifespan=lifespan,
        redoc_url=None,
        static_url="/docs/files",
        favicon_url="/web/icon.svg",
    )
    if access.origins:
        app.add_middleware(CORSMiddleware, allow_origins=access.origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    app.add_middleware(AccessMiddleware, access=access)
    add_error_handlers(app)
    metrics = Metrics(pool)
    for router in (
        chat_routes(pool, metrics),
        completion_routes(pool, metrics),
        response_routes(pool, metrics),
        message_routes(pool, metrics),
        embedding_routes(pool),
        token_routes(pool),
        model_routes(pool, metrics),
        page_routes(),
    ):
        app.include_router(router)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return RequestLog(app, logs_text)


async def _load(pool: ModelPool, name: str, failed: Failed | None) -> None:
    try:
        (await pool.use(name)).release()
    except EdgeLMError as error:
        if failed is not None:
            failed(error)


async def _sweep(pool: ModelPool) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        await pool.sweep()
