"""Who is measured: edgelm's engines, and other programs beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

import edgelm
from edgelm.backends.registry import find_engine, open_backend
from edgelm.bench.record import EngineRun
from edgelm.bench.runner import BackendRunner, Runner
from edgelm.errors import InvalidRequestError


@dataclass(frozen=True)
class Peer:
    """Another program.

    Attributes:
        target: "module:class" of a Runner that takes a model's path, threads and tokens of context.
        package: whose version computes.
    """

    target: str
    package: str


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "llama.cpp": Peer("edgelm.bench.llamacpp_peer:LlamaCppPeer", "llama-cpp-python"),
        "llama-cpp-python": Peer("edgelm.bench.llama_cpp_python_peer:LlamaCppPythonPeer", "llama-cpp-python"),
        "onnxruntime-genai": Peer("edgelm.bench.genai_peer:GenAIPeer", "onnxruntime-genai"),
    }
)
"""Other programs by name."""

_COMPUTES = MappingProxyType({"llamacpp": "llama-cpp-python", "onnx": "onnxruntime"})
"""Packages that compute for edgelm's engines, other than edgelm itself."""


@dataclass(frozen=True)
class Contestant:
    """One engine with one model.

    Attributes:
        name: of one of edgelm's engines, or of PEERS.
        model: path of a model file or folder.
        n_threads, n_ctx: threads that compute, tokens that the context must hold.
        is_peer: whether the name is one of PEERS.
        precision: of edgelm's activations; None for the engine's choice.
        options: of edgelm's engine.
    """

    name: str
    model: Path
    n_threads: int
    n_ctx: int
    is_peer: bool = False
    precision: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.is_peer and self.name not in PEERS:
            raise InvalidRequestError(f"no peer is called {self.name!r}; edgebench has {', '.join(PEERS)}")
        if min(self.n_threads, self.n_ctx) < 1:
            raise InvalidRequestError(f"{self.n_threads} threads and {self.n_ctx} tokens of context: both must be at least 1")


def load_code(contestant: Contestant) -> None:
    """Import what the engine is made of, so that opening it measures opening alone."""
    target = PEERS[contestant.name].target if contestant.is_peer else find_engine(contestant.name).target
    import_module(target.partition(":")[0])


def open_runner(contestant: Contestant, progress: Callable[[str], None]) -> tuple[Runner, EngineRun]:
    """Open the model, and say what the engine says of itself.

    Raises:
        BackendUnavailableError: the engine or program is not installed or does not run here.
        EdgeLMError: as the engine finds the model.
    """
    if contestant.is_peer:
        peer = PEERS[contestant.name]
        module, _, name = peer.target.partition(":")
        runner: Runner = getattr(import_module(module), name)(contestant.model, contestant.n_threads, contestant.n_ctx)
        return runner, EngineRun(contestant.name, contestant.n_threads, is_peer=True, version=_version(peer.package))
    # The context of an exported folder is what it was exported with.
    n_ctx = None if contestant.model.is_dir() and contestant.name == "onnx" else contestant.n_ctx
    backend = open_backend(
        contestant.name,
        contestant.model,
        n_threads=contestant.n_threads,
        n_ctx=n_ctx,
        precision=contestant.precision,
        progress=progress,
        options=contestant.options,
    )
    info = backend.info
    if info.n_ctx < contestant.n_ctx:
        backend.close()
        raise InvalidRequestError(f"{contestant.model} holds {info.n_ctx} tokens, but {contestant.n_ctx} are measured; ask for fewer")
    package = _COMPUTES.get(contestant.name)
    return BackendRunner(backend), EngineRun(
        contestant.name,
        info.n_threads,
        version=f"{package} {_version(package)}" if package else f"edgelm {edgelm.__version__}",
        precision=info.precision,
        weight_bytes=info.weight_bytes,
        bytes_per_token=info.bytes_per_token,
        kv_bytes_per_token=info.kv_bytes_per_token,
        providers=dict(info.providers),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
