"""Every engine, by name: one row each, imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgelm.backends.base import Backend
from edgelm.errors import BackendUnavailableError, InvalidRequestError
from edgelm.quant.model_file import ModelFile

Progress = Callable[[str], None]
"""Called with one line whenever the engine begins something that takes long (packing weights, compiling kernels)."""

PRECISIONS = ("int8", "f32")
_MAX_THREADS = 1024


@dataclass(frozen=True)
class Engine:
    """How to find one engine.

    Attributes:
        target: "module:class"; the class takes a ModelFile and open_backend's options.
        needs: top-level modules that must be installed.
        advice: how to install them.
        summary: one line for people.
    """

    target: str
    needs: tuple[str, ...] = ()
    advice: str = ""
    summary: str = ""


ENGINES: Mapping[str, Engine] = MappingProxyType(
    {
        "cpu": Engine("edgelm.backends.cpu.engine:CPUBackend", ("numba",), "pip install edgelm", "numba SIMD kernels on the CPU"),
    }
)


def unavailable_reason(name: str) -> str | None:
    """Why the engine cannot be opened here, or None where it can; nothing heavy is imported.

    Raises:
        BackendUnavailableError: no engine has this name.
    """
    engine = _find(name)
    missing = [module for module in (*engine.needs, engine.target.partition(":")[0]) if not _is_installed(module)]
    return f"{', '.join(missing)} not installed; {engine.advice}" if missing else None


def open_backend(
    name: str,
    model: str | Path | ModelFile,
    *,
    n_threads: int | None = None,
    n_ctx: int | None = None,
    precision: str = "int8",
    progress: Progress | None = None,
    cache_folder: Path | None = None,
) -> Backend:
    """Load a model into the engine called `name`.

    Args:
        model: path of a model file or folder, or one already opened (which the engine then owns).
        n_threads: threads that compute; None lets the engine choose.
        n_ctx: tokens that one sequence may hold; None lets the engine choose.
        precision: of the activations in matrix products, "int8" or "f32".
        progress: called with a line before anything that takes long.
        cache_folder: where the engine keeps what it need not make twice; the user's cache folder unless given.

    Raises:
        BackendUnavailableError: no such engine, or what it needs is not installed.
        InvalidRequestError: a value that makes no sense.
        ModelFileError, UnsupportedModelError, InsufficientMemoryError: as the engine finds the model.
    """
    engine = _find(name)
    if precision not in PRECISIONS:
        raise InvalidRequestError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    for what, value in (("n_threads", n_threads), ("n_ctx", n_ctx)):
        if value is not None and value < 1:
            raise InvalidRequestError(f"{what} is {value}; it must be at least 1")
    if n_threads is not None and n_threads > _MAX_THREADS:
        raise InvalidRequestError(
            f"n_threads is {n_threads}; it must be at most {_MAX_THREADS}, and does best at the number of physical cores"
        )
    reason = unavailable_reason(name)
    if reason is not None:
        raise BackendUnavailableError(f"the backend {name!r} cannot be used: {reason}")
    module, _, attribute = engine.target.partition(":")
    opened = _open_model(model) if isinstance(model, str | Path) else model
    constructor: Any = getattr(import_module(module), attribute)
    backend: Backend = constructor(
        opened, n_threads=n_threads, n_ctx=n_ctx, precision=precision, progress=progress, cache_folder=cache_folder
    )
    return backend


def _find(name: str) -> Engine:
    engine = ENGINES.get(name)
    if engine is None:
        raise BackendUnavailableError(f"no backend is called {name!r}; edgelm has {', '.join(ENGINES)}")
    return engine


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _open_model(path: str | Path) -> ModelFile:
    from edgelm.quant.open_model import open_model

    return open_model(Path(path))
