"""The models: which there are, loading and unloading them, and whether the server is ready."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from edgelm.runtime.local_model import LocalModel
from edgelm.runtime.model_pool import ModelPool
from edgelm.runtime.server.metrics import CONTENT_TYPE, Metrics
from edgelm.runtime.server.strict import Strict
from edgelm.version import __version__


class ModelName(Strict):
    """Which model."""

    model: str = Field(description="Its name.")


def model_routes(pool: ModelPool, metrics: Metrics) -> APIRouter:
    router = APIRouter()
    created = int(time.time())

    def card(name: str) -> dict[str, Any]:
        model = pool.loaded().get(name)
        meta = None
        if model is not None:
            info = model.llm.info
            meta = {"backend": info.backend, "architecture": info.architecture, "n_ctx": info.n_ctx, "n_vocab": info.n_vocab}
        return {"id": name, "object": "model", "created": created, "owned_by": "edgelm", **_state(name), "meta": meta}

    def _state(name: str) -> dict[str, Any]:
        return {"state": pool.state(name), "routed": pool.is_routed(name)}

    @router.get("/health", summary="Whether requests are answered at once: 503 while the first model is loading")
    async def health() -> Response:
        if any(pool.state(name) == "loading" for name in pool.names) and not pool.loaded():
            return JSONResponse({"status": "loading"}, 503, {"Retry-After": "1"})
        return JSONResponse({"status": "ok"})

    @router.get("/metrics", summary="Counts and times, for Prometheus")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @router.get("/props", summary="What the models that are loaded are, and how many share them")
    async def props() -> dict[str, Any]:
        return {"version": __version__, "models": {name: _properties(model) for name, model in pool.loaded().items()}}

    @router.get("/v1/models", summary="The models that can be asked")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [card(name) for name in pool.names]}

    @router.get("/v1/models/{name:path}", summary="One model")
    async def get_model(name: str) -> dict[str, Any]:
        return card(name)

    @router.post("/models/load", summary="Load a model now, and not when it is first asked")
    async def load(body: ModelName) -> dict[str, Any]:
        (await pool.use(body.model)).release()
        return card(body.model)

    @router.post("/models/unload", summary="Free the memory of a model that nobody uses")
    async def unload(body: ModelName) -> dict[str, Any]:
        await pool.unload(body.model)
        return card(body.model)

    return router


def _properties(model: LocalModel) -> dict[str, Any]:
    info, limits = model.llm.info, model.scheduler.limits
    return {
        "backend": info.backend,
        "architecture": info.architecture,
        "n_ctx": info.n_ctx,
        "n_threads": info.n_threads,
        "precision": info.precision,
        "weight_bytes": info.weight_bytes,
        "n_parallel": limits.n_active,
        "n_waiting": limits.n_waiting,
        "prefix_cache_bytes": limits.cache_bytes,
        "chat_template": model.llm.metadata.get("tokenizer.chat_template"),
    }
