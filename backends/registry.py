"""Every engine, by name: one row each, imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgelm.backends.base import Backend, Progress
from edgelm.backends.options import NoOptions, read_options
from edgelm.errors import BackendUnavailableError, InvalidRequestError
from edgelm.quant.model_file import ModelFile

PRECISIONS = ("int8", "f32")
ENTRY_POINTS = "edgelm.backends"
"""Group of entry points by which other packages add engines: name of the engine = "module:attribute" of its Engine row."""
_MAX_THREADS = 1024


@dataclass(frozen=True)
class Engine:
    """How to find one engine.

    Attributes:
        target: "module:class"; the class takes a ModelFile and, by keyword, open_backend's arguments but `options`.
        options: "module:class" of a frozen dataclass with the engine's own options, each with a default; an instance is the argument
            `options`. Empty for an engine that has none.
        needs: top-level modules that must be installed.
        advice: how to install them.
        summary: one line for people.
    """

    target: str
    options: str = ""
    needs: tuple[str, ...] = ()
    advice: str = ""
    summary: str = ""


ENGINES: Mapping[str, Engine] = MappingProxyType(
    {
        "cpu": Engine(
            "edgelm.backends.cpu.engine:CPUBackend",
            needs=("numba",),
            advice="pip install edgelm",
            summary="numba SIMD kernels on the CPU",
        ),
        "llamacpp": Engine(
            "edgelm.backends.llamacpp:LlamaCppBackend",
            options="edgelm.backends.llamacpp:LlamaCppOptions",
            needs=("llama_cpp",),
            advice="pip install 'edgelm[llamacpp]'",
            summary="llama.cpp, on the CPU or on whatever it was built for",
        ),
        "onnx": Engine(
            "edgelm.backends.onnx.engine:ONNXBackend",
            options="edgelm.backends.onnx.options:ONNXOptions",
            needs=("onnxruntime",),
            advice="pip install 'edgelm[onnx]'",
            summary="ONNX Runtime, with its execution providers",
        ),
    }
)
"""The engines that edgelm brings."""


def engine_names() -> tuple[str, ...]:
    """Names of edgelm's engines, and after them those of other packages."""
    added = {point.name for point in entry_points(group=ENTRY_POINTS)} - set(ENGINES)
    return (*ENGINES, *sorted(added))


def find_engine(name: str) -> Engine:
    """The row of an engine. Another package cannot take the place of edgelm's own.

    Raises:
        BackendUnavailableError: no engine has this name, several packages claim it, or its entry point cannot be loaded.
    """
    if name in ENGINES:
        return ENGINES[name]
    points = list(entry_points(group=ENTRY_POINTS, name=name))
    if not points:
        raise BackendUnavailableError(f"no backend is called {name!r}; edgelm has {', '.join(engine_names())}")
    packages = [point.dist.name if point.dist else point.value for point in points]
    if len(points) > 1:
        raise BackendUnavailableError(f"several packages add a backend {name!r} ({', '.join(packages)}); uninstall all but one")
    try:
        row = points[0].load()
    except (ImportError, AttributeError) as error:
        raise BackendUnavailableError(f"the backend {name!r} of {packages[0]} cannot be loaded ({error}); update {packages[0]}") from error
    if not isinstance(row, Engine):
        raise BackendUnavailableError(
            f"the backend {name!r} of {packages[0]} names no edgelm.backends.registry.Engine; update {packages[0]}"
        )
    return row


def unavailable_reason(name: str) -> str | None:
    """Why the engine cannot be opened here, or None where it can; nothing heavy is imported.

    Raises:
        BackendUnavailableError: no engine has this name.
    """
    engine = find_engine(name)
    missing = [module for module in (*engine.needs, engine.target.partition(":")[0]) if not _is_installed(module)]
    return f"{', '.join(missing)} not installed; {engine.advice}" if missing else None


def open_backend(
    name: str,
    model: str | Path | ModelFile,
    *,
    n_threads: int | None = None,
    n_ctx: int | None = None,
    precision: str | None = None,
    progress: Progress | None = None,
    cache_folder: Path | None = None,
    options: Mapping[str, object] = MappingProxyType({}),
) -> Backend:
    """Load a model into the engine called `name`.

    Args:
        model: path of a model file or folder, or one already opened (which the engine then owns).
        n_threads: threads that compute; None lets the engine choose.
        n_ctx: tokens that one sequence may hold; None lets the engine choose.
        precision: of the activations in products with quantized weights, "int8" or "f32"; None lets the engine choose.
        progress: called with a line before anything that takes long.
        cache_folder: where the engine keeps what it need not make twice; the user's cache folder unless given.
        options: the engine's own, by name; its options class says which there are.

    Raises:
        BackendUnavailableError: no such engine, or what it needs is not installed.
        InvalidRequestError: a value that makes no sense, or an option that the engine does not have.
        ModelFileError, UnsupportedModelError, InsufficientMemoryError: as the engine finds the model.
    """
    engine = find_engine(name)
    if precision is not None and precision not in PRECISIONS:
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
    kind = _attribute(engine.options) if engine.options else NoOptions
    wanted = read_options(kind, options, name)
    own = {"options": wanted} if engine.options else {}
    constructor = _attribute(engine.target)
    opened = _open_model(model) if isinstance(model, str | Path) else model
    backend: Backend = constructor(
        opened, n_threads=n_threads, n_ctx=n_ctx, precision=precision, progress=progress, cache_folder=cache_folder, **own
    )
    return backend


def _attribute(reference: str) -> Any:
    """What "module:attribute" names."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _open_model(path: str | Path) -> ModelFile:
    from edgelm.quant.open_model import open_model

    return open_model(Path(path))
