"""`edgelm serve`: a model that programs ask over HTTP, by OpenAI's protocol."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from edgelm.errors import MissingPackageError
from edgelm.runtime.catalogue import DEFAULT_MODEL
from edgelm.runtime.commands import options
from edgelm.runtime.settings import read_settings
from edgelm.version import __version__

_SERVER, _SHARE, _MODELS = "Server", "Sharing the machine", "Several models"


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A file or folder, a name (see `edgelm models`), or hf:owner/repo/file; loaded at once.",
            show_default=f"{DEFAULT_MODEL}; none with --models-dir",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(envvar="EDGELM_HOST", help="Address to listen at; any but this machine's own needs a key.", rich_help_panel=_SERVER),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(envvar="EDGELM_PORT", help="Port to listen at; 0 for one that is free.", min=0, max=65535, rich_help_panel=_SERVER),
    ] = 8080,
    name: Annotated[str | None, typer.Option(help="What clients call the model.", show_default="MODEL", rich_help_panel=_SERVER)] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Its lines are keys that open the server; EDGELM_API_KEY is one, too.",
            exists=True,
            dir_okay=False,
            rich_help_panel=_SERVER,
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A web page that may ask from browsers; may be given several times.", rich_help_panel=_SERVER),
    ] = None,
    models_dir: Annotated[
        Path | None,
        typer.Option(
            help="A folder of models that are loaded when they are asked for.", exists=True, file_okay=False, rich_help_panel=_MODELS
        ),
    ] = None,
    keep_alive: Annotated[
        float, typer.Option(help="Seconds after which a model that nobody uses is unloaded; 0 for never.", min=0, rich_help_panel=_MODELS)
    ] = 0,
    memory: Annotated[
        int | None,
        typer.Option(help="Megabytes of all loaded models; idle ones make room.", min=1, show_default="no bound", rich_help_panel=_MODELS),
    ] = None,
    route: options.Route = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Log faults only, and not a line for each request.", rich_help_panel=_SERVER)
    ] = False,
    log_text: Annotated[bool, typer.Option("--log-text", help="Log what is asked and answered, too.", rich_help_panel=_SERVER)] = False,
    grace: Annotated[float, typer.Option(help="Seconds that answers may take to end after Ctrl-C.", min=0, rich_help_panel=_SERVER)] = 10.0,
    parallel: Annotated[int, typer.Option(help="Answers computed together.", min=1, max=256, rich_help_panel=_SHARE)] = 16,
    waiting: Annotated[int, typer.Option(help="Requests that may wait for a place.", min=0, rich_help_panel=_SHARE)] = 256,
    cache: Annotated[int, typer.Option(help="Megabytes of computed beginnings that are kept.", min=0, rich_help_panel=_SHARE)] = 512,
    disk_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Keep beginnings there, too, across restarts. They hold what people wrote.", rich_help_panel=_SHARE
        ),
    ] = None,
    disk_cache_size: Annotated[int, typer.Option(help="Megabytes of that folder.", min=1, rich_help_panel=_SHARE)] = 4096,
    kv_memory: Annotated[
        int | None,
        typer.Option(
            help="Megabytes of keys and values of all answers and beginnings of a model.",
            min=1,
            show_default="no bound",
            rich_help_panel=_SHARE,
        ),
    ] = None,
    backend: options.Backend = None,
    backend_option: options.BackendOption = None,
    threads: options.Threads = None,
    ctx: options.Ctx = None,
    precision: options.Precision = None,
) -> None:
    """Answer programs over HTTP, by OpenAI's protocol, until Ctrl-C."""
    missing = [package for package in ("fastapi", "uvicorn", "prometheus_client") if find_spec(package) is None]
    if missing:
        raise MissingPackageError(f"the server needs {', '.join(missing)}, not installed here; pip install 'edgelm[server]'")
    from edgelm.runtime.commands.loading import load, locate
    from edgelm.runtime.commands.routing import deployed, router_of
    from edgelm.runtime.local_model import LocalModel
    from edgelm.runtime.model_folder import bytes_on_disk, identity_of, models_in, short_name
    from edgelm.runtime.model_pool import ModelPool, ModelSource
    from edgelm.runtime.prefix_store import StoreFolder
    from edgelm.runtime.scheduler import Limits
    from edgelm.runtime.server.access import Access
    from edgelm.runtime.server.run import run_server

    deployment = None if route is None else deployed(route)
    levels = {} if deployment is None else deployment.levels_of_keys
    if deployment is not None and deployment.cloud is not None:
        deployment.cloud.prepare()
    access = Access(host, (*_keys(api_key_file), *levels), tuple(allow_origin or ()), levels=levels)
    kv_bytes = None if kv_memory is None else kv_memory << 20
    limits = Limits(n_active=parallel, n_waiting=waiting, kv_bytes=kv_bytes, cache_bytes=cache << 20)
    folder = None if disk_cache is None else StoreFolder(disk_cache, disk_cache_size << 20)

    def open_model(path: Path) -> LocalModel:
        llm = load(str(path), backend, threads, ctx, precision, backend_option or [])
        if folder is None:
            return LocalModel(llm, limits)
        info = llm.info
        parts = (identity_of(path), __version__, info.backend, info.precision, info.n_ctx, info.kv_bytes_per_token, backend_option)
        return LocalModel(llm, limits, folder.of(" ".join(map(str, parts))))

    def source(path: Path) -> ModelSource:
        size = bytes_on_disk(path)
        if deployment is None:
            return ModelSource(lambda: open_model(path), size)
        return ModelSource(lambda: open_model(path), size, lambda model: router_of(deployment, model, path))

    sources = {} if models_dir is None else {each: source(path) for each, path in models_in(models_dir).items()}
    first = None
    if model is not None or models_dir is None:
        model = model or DEFAULT_MODEL
        first = name or short_name(model)
        sources = {first: source(locate(model))} | sources
    pool = ModelPool(sources, None if memory is None else memory << 20, keep_alive or None, grace)
    try:
        run_server(pool, access, port, grace, first, quiet, log_text, None if deployment is None else deployment.close)
    finally:
        if folder is not None:
            folder.close()


def _keys(file: Path | None) -> tuple[str, ...]:
    lines = file.read_text(encoding="utf-8", errors="replace").split() if file else []
    if file and not lines:
        raise typer.BadParameter(f"{file} holds no key")
    own = read_settings().api_key
    return (*lines, *([own] if own else []))
