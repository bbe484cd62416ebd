"""Who is measured: edgelm's engines, and other programs beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

import edgelm
from edgelm.backends.base import Backend
from edgelm.backends.llamacpp_layout import bytes_per_token, read_layout
from edgelm.backends.registry import find_engine, open_backend
from edgelm.bench.record import EngineRun
from edgelm.bench.runner import BackendRunner, Runner
from edgelm.errors import InvalidRequestError
from edgelm.quant.blocks import F16
from edgelm.quant.open_model import open_model
from edgelm.runtime.settings import read_settings


@dataclass(frozen=True)
class Peer:
    """Another program.

    Attributes:
        target: "module:class" of a Runner that takes a model's path, threads and tokens of context.
        package: whose version computes.
        is_llama_cpp: whether it is llama.cpp with its own defaults.
    """

    target: str
    package: str
    is_llama_cpp: bool = False


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "llama.cpp": Peer("edgelm.bench.llamacpp_peer:LlamaCppPeer", "llama-cpp-python", is_llama_cpp=True),
        "llama-cpp-python": Peer("edgelm.bench.llama_cpp_python_peer:LlamaCppPythonPeer", "llama-cpp-python", is_llama_cpp=True),
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


@dataclass(frozen=True)
class Opened:
    """An engine that is ready.

    Attributes:
        engine: what it says of itself.
        files: files or folders that it read.
        is_plain_llama_cpp: whether it is llama.cpp on the CPU by its defaults, whose sizes with_sizes knows.
    """

    runner: Runner
    engine: EngineRun
    files: tuple[Path, ...]
    is_plain_llama_cpp: bool = False


def open_runner(contestant: Contestant, progress: Callable[[str], None]) -> Opened:
    """Open the model.

    Raises:
        BackendUnavailableError: the engine or program is not installed or does not run here.
        EdgeLMError: as the engine finds the model.
    """
    return _open_peer(contestant) if contestant.is_peer else _open_engine(contestant, progress)


def _open_peer(contestant: Contestant) -> Opened:
    peer = PEERS[contestant.name]
    module, _, name = peer.target.partition(":")
    runner: Runner = getattr(import_module(module), name)(contestant.model, contestant.n_threads, contestant.n_ctx)
    engine = EngineRun(contestant.name, contestant.n_threads, is_peer=True, version=f"{peer.package} {_version(peer.package)}")
    return Opened(runner, engine, (contestant.model,), peer.is_llama_cpp and not _computes_on_gpu())


def _computes_on_gpu() -> bool:
    """Whether llama.cpp was built for a GPU, to which its defaults then give all layers."""
    from llama_cpp import llama_cpp

    return bool(llama_cpp.llama_supports_gpu_offload())


def with_sizes(engine: EngineRun, path: Path) -> EngineRun:
    """What llama.cpp does by its defaults: a KV cache in float16, and int8 activations in products with quantized weights.

    Not for the engine's own process, of whose time and memory reading the file would be a part.
    """
    with closing(open_model(path)) as file:
        is_quantized = any(len(tensor.shape) > 1 and tensor.format.n_elements > 1 for tensor in file.tensors.values())
        return replace(
            engine,
            precision="int8" if is_quantized else "",
            weight_bytes=sum(tensor.data.nbytes for tensor in file.tensors.values()),
            bytes_per_token=bytes_per_token(file),
            kv_bytes_per_token=read_layout(file).kv_bytes(F16, F16),
        )


def _open_engine(contestant: Contestant, progress: Callable[[str], None]) -> Opened:
    # The context of an exported folder is what it was exported with.
    n_ctx = None if contestant.model.is_dir() and contestant.name == "onnx" else contestant.n_ctx
    backend = open_backend(
        contestant.name,
        contestant.model,
        n_threads=contestant.n_threads,
        n_ctx=n_ctx,
        precision=contestant.precision,
        progress=progress,
        cache_folder=read_settings().home,
        options=contestant.options,
    )
    info = backend.info
    if info.n_ctx < contestant.n_ctx:
        backend.close()
        raise InvalidRequestError(f"{contestant.model} holds {info.n_ctx} tokens, but {contestant.n_ctx} are measured; ask for fewer")
    if info.n_threads != contestant.n_threads:
        backend.close()
        raise InvalidRequestError(f"{contestant.name} computes with {info.n_threads} threads, but {contestant.n_threads} were asked for")
    package = _COMPUTES.get(contestant.name)
    engine = EngineRun(
        contestant.name,
        info.n_threads,
        version=f"{package} {_version(package)}" if package else f"edgelm {edgelm.__version__}",
        precision=info.precision,
        weight_bytes=info.weight_bytes,
        bytes_per_token=info.bytes_per_token,
        kv_bytes_per_token=info.kv_bytes_per_token,
        providers=dict(info.providers),
    )
    return Opened(BackendRunner(backend), engine, (_source(contestant, backend),))


def _source(contestant: Contestant, backend: Backend) -> Path:
    """What the engine reads when it opens the model: of ONNX Runtime not the model, but the folder that it was exported to."""
    if contestant.name != "onnx":
        return contestant.model
    from edgelm.backends.onnx.engine import ONNXBackend

    return backend.folder if isinstance(backend, ONNXBackend) else contestant.model


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
