"""The page at /, with which a person talks to the models: static files that ask nobody but this server."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "web"

_HEADERS = {
    # what a model writes could name addresses elsewhere; the browser must not follow them by itself
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # ask whether it has changed: an update of edgelm brings another page
}


def page_routes() -> APIRouter:
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(FOLDER / "index.html", headers=_HEADERS)

    router.mount("/web", StaticFiles(directory=FOLDER))
    return router
