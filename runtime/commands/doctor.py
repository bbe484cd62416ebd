"""`edgelm doctor`: what this machine has, and what edgelm makes of it."""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import edgelm
from edgelm.runtime.commands import options
from edgelm.runtime.settings import Settings, read_settings

if TYPE_CHECKING:
    from edgelm.backends.base import ModelInfo

_RELEVANT = (
    *("sse4.2", "avx", "avx2", "fma", "f16c", "avxvnni", "avxvnniint8", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "amx-int8"),
    *("neon", "dotprod", "i8mm", "sve", "fullfp16", "bf16"),
)
"""LLVM's names of the instruction sets that matter for matrix products."""


def doctor(
    model: Annotated[str | None, typer.Argument(help="Also open this model, and say what computes it.", show_default=False)] = None,
    backend: options.Backend = None,
    backend_option: options.BackendOption = None,
) -> None:
    """Show the CPU features found, the threads chosen and why, limits, memory, caches, backends and execution providers."""
    from edgelm.runtime.commands.tables import print_facts

    settings = read_settings()
    print_facts([*_software(), *_processor(), *_memory(), *_storage(settings), *_backends(), *_providers()])
    if model is not None:
        from edgelm.runtime.commands.loading import load

        with load(model, backend, None, None, None, backend_option or []) as llm:
            print()
            print_facts([("model", model), *_computation(llm.info)])


def _computation(info: ModelInfo) -> list[tuple[str, str]]:
    """What computes an open model."""
    facts = [
        ("architecture", info.architecture),
        ("backend", f"{info.backend}, {info.n_threads} threads, {info.precision} activations, a context of {info.n_ctx} tokens"),
        ("memory", f"{_gigabytes(info.weight_bytes)} weights and {info.kv_bytes_per_token:,} bytes of KV cache per token"),
    ]
    shares = ", ".join(f"{n_nodes} by {name}" for name, n_nodes in info.providers.items())
    return [*facts, ("nodes computed", shares)] if shares else facts


def _software() -> list[tuple[str, str]]:
    return [("edgelm", edgelm.__version__), ("python", f"{platform.python_version()} at {sys.executable}"), ("system", platform.platform())]


def _processor() -> list[tuple[str, str]]:
    from edgelm.backends.cpu.topology import choose_threads, cpu_features, cpu_model, cpu_name

    threads, features = choose_threads(), cpu_features()
    return [
        ("processor", f"{cpu_model()} (LLVM calls it {cpu_name()})"),
        ("CPU features", " ".join(name for name in _RELEVANT if name in features) or "none that edgelm has kernels for"),
        ("threads", f"{threads.n_threads}: {threads.reason}"),
        ("cpuset", ",".join(map(str, threads.cpuset))),
        ("CPU quota", "none" if threads.quota is None else f"{threads.quota:g} CPUs (control group)"),
    ]


def _memory() -> list[tuple[str, str]]:
    import psutil

    from edgelm.backends.cgroup import memory_headroom
    from edgelm.backends.memory import available_memory

    headroom = memory_headroom()
    total = int(psutil.virtual_memory().total)
    limited = headroom is not None and headroom < total
    limit = f"the control group leaves {_gigabytes(headroom or 0)}" if limited else "no control group limits it"
    return [("memory", f"{_gigabytes(available_memory())} available of {_gigabytes(total)}; {limit}")]


def _storage(settings: Settings) -> list[tuple[str, str]]:
    models = [file for file in settings.models.rglob("*") if file.is_file() and ".partial" not in file.parts]
    size = sum(file.stat().st_size for file in models)
    free = shutil.disk_usage(_existing(settings.home)).free
    return [
        ("models", f"{settings.models}: {len(models)} files, {_gigabytes(size)}; {_gigabytes(free)} free on this disk"),
        ("kernel cache", _kernel_cache()),
        ("ONNX exports", _exports()),
    ]


def _exports() -> str:
    from edgelm.backends.onnx.engine import export_folder

    folder = export_folder(read_settings().home)
    models = [entry for entry in folder.glob("[!.]*") if entry.is_dir()]
    size = sum(file.stat().st_size for entry in models for file in entry.rglob("*") if file.is_file())
    return f"{folder}: {len(models)} models, {_gigabytes(size)}; deleting them is safe, they are made again when they are needed"


def _kernel_cache() -> str:
    from edgelm.backends.cpu.engine import kernel_folder
    from edgelm.backends.cpu.kernel_cache import host_target, kernel_digest

    folder = kernel_folder(read_settings().home)
    target = host_target()
    kernels = list((folder / kernel_digest(target)).glob("*.kernel"))
    state = (
        f"{len(kernels)} kernels compiled for {target.isa}"
        if kernels
        else f"none compiled for {target.isa} yet: the first run does it once"
    )
    n_stale = sum(1 for other in folder.glob("*") if other.name != kernel_digest(target))
    return f"{folder}: {state}" + (f"; {n_stale} folders of other versions or CPUs may be deleted" if n_stale else "")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest parent that exists."""
    return folder if folder.exists() else _existing(folder.parent)


def _backends() -> list[tuple[str, str]]:
    from edgelm.backends.registry import engine_names

    return [(f"backend {name}", _backend(name)) for name in engine_names()]


def _backend(name: str) -> str:
    from edgelm.backends.registry import find_engine, unavailable_reason
    from edgelm.errors import BackendUnavailableError

    try:
        reason = unavailable_reason(name)
    except BackendUnavailableError as error:  # another package's engine that cannot be loaded
        return f"not available: {error}"
    return f"available: {find_engine(name).summary}" if reason is None else f"not available: {reason}"


def _providers() -> list[tuple[str, str]]:
    from edgelm.backends.onnx.providers import ProviderState, survey

    def words(state: ProviderState) -> str:
        if state.reason is not None:
            return f"not available: {state.reason}"
        devices = f"; devices: {', '.join(state.devices)}" if state.devices else ""
        return f"available: {state.provider.summary}; {state.version}{devices}"

    return [(f"ONNX provider {state.provider.name}", words(state)) for state in survey()]


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
