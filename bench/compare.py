"""Speed of an edgelm engine beside another program's: same model, same threads, one process, taking turns."""

from __future__ import annotations

import hashlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import edgelm
from edgelm.backends.cpu.topology import cpu_model
from edgelm.backends.registry import open_backend
from edgelm.bench.busy import busy_neighbour
from edgelm.bench.genai_peer import GenAIPeer
from edgelm.bench.llama_cpp_python_peer import LlamaCppPythonPeer
from edgelm.bench.llamacpp_peer import LlamaCppPeer
from edgelm.bench.runner import BackendRunner, Runner
from edgelm.errors import InvalidRequestError

# Both engines' threads spin for some milliseconds after their work before they sleep; the other's turn begins after that.
_SETTLE_S = 0.25
Result = TypeVar("Result")
_PACKAGES = ("numpy", "numba", "llvmlite", "llama-cpp-python", "onnxruntime", "onnxruntime-genai")

PEERS: Mapping[str, Callable[[Path, int, int], Runner]] = MappingProxyType(
    {"llama.cpp": LlamaCppPeer, "llama-cpp-python": LlamaCppPythonPeer, "onnxruntime-genai": GenAIPeer}
)
"""Other programs by name: each opens a model's path with so many threads and tokens of context."""


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        threads: thread counts, one after the other.
        n_prompt: tokens of one prefill, 0 for none.
        n_generate: tokens decoded one by one from an empty context, 0 for none.
        repeat: turns of each engine.
        busy: whether a spinning process runs beside both.
        precision: of edgelm's activations, "int8" or "f32"; None for the engine's choice.
        backend: edgelm's engine.
        peer: the other program, one of PEERS.
    """

    threads: tuple[int, ...] = (1,)
    n_prompt: int = 512
    n_generate: int = 128
    repeat: int = 5
    busy: bool = False
    precision: str | None = None
    backend: str = "cpu"
    peer: str = "llama.cpp"

    def __post_init__(self) -> None:
        if self.peer not in PEERS:
            raise InvalidRequestError(f"no peer is called {self.peer!r}; edgebench has {', '.join(PEERS)}")
        if not self.threads or min(self.threads) < 1 or self.repeat < 1 or min(self.n_prompt, self.n_generate) < 0:
            raise InvalidRequestError(f"threads and repeat must be at least 1, and token counts not negative: {self}")
        if not self.n_prompt and not self.n_generate:
            raise InvalidRequestError("nothing to measure: give --prompt or --generate a number of tokens")


@dataclass(frozen=True)
class Measurement:
    """One phase at one thread count; tokens per second of every turn, in order.

    Attributes:
        phase: "decode" or "prefill".
        edgelm, peer: tokens per second, one for each turn.
        equal_tokens: greedy tokens that were equal before the first difference (decode).
    """

    phase: str
    n_threads: int
    n_tokens: int
    edgelm: tuple[float, ...]
    peer: tuple[float, ...]
    equal_tokens: int | None = None

    @property
    def ratios(self) -> tuple[float, ...]:
        """edgelm's speed over the peer's in the same turn: slow drifts of the machine cancel."""
        return tuple(ours / theirs for ours, theirs in zip(self.edgelm, self.peer, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def edgelm_median(self) -> float:
        return statistics.median(self.edgelm)

    @property
    def peer_median(self) -> float:
        return statistics.median(self.peer)


@dataclass(frozen=True)
class Machine:
    """Where and with what it was measured."""

    cpu: str
    system: str
    python: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """The record of one run of `edgebench compare`."""

    when: str
    machine: Machine
    model: str
    model_bytes: int
    model_sha256: str
    workload: Workload
    measurements: tuple[Measurement, ...]


def compare(model: Path, workload: Workload, progress: Callable[[str], None]) -> Comparison:
    """Measure both engines on a GGUF file, or on an exported folder where both read it.

    Raises:
        BackendUnavailableError: the peer is not installed, or the engine does not run here.
        EdgeLMError: as the engines find the model.
    """
    progress(f"hashing {model.name}")
    sha256 = _sha256(model)
    measurements: list[Measurement] = []
    for n_threads in workload.threads:
        measurements += _compare_at(model, n_threads, workload, progress)
    return Comparison(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(),
        model=model.name,
        model_bytes=sum(file.stat().st_size for file in _files(model)),
        model_sha256=sha256,
        workload=workload,
        measurements=tuple(measurements),
    )


def _files(model: Path) -> list[Path]:
    return sorted(file for file in model.rglob("*") if file.is_file()) if model.is_dir() else [model]


def _sha256(model: Path) -> str:
    """Of the file, or of a folder's files one after the other, by name."""
    digest = hashlib.sha256()
    for path in _files(model):
        with path.open("rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
    return digest.hexdigest()


def describe_machine() -> Machine:
    """The CPU and the versions of everything that computes."""
    return Machine(cpu_model(), platform.platform(), platform.python_version(), {"edgelm": edgelm.__version__, **_versions()})


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _compare_at(model: Path, n_threads: int, workload: Workload, progress: Callable[[str], None]) -> list[Measurement]:
    n_ctx = max(workload.n_prompt, workload.n_generate, 64) + 1
    peer = PEERS[workload.peer](model, n_threads, n_ctx)
    try:
        prompt = [(100 + i % 500) % peer.n_vocab for i in range(workload.n_prompt)]
        progress(f"{n_threads} thread(s): opening the model")
        backend = open_backend(workload.backend, model, n_threads=n_threads, n_ctx=n_ctx, precision=workload.precision, progress=progress)
        runner = BackendRunner(backend)
        try:
            with busy_neighbour(workload.busy):
                return _measure((runner, peer), n_threads, prompt, workload, progress)
        finally:
            runner.close()
    finally:
        peer.close()


def _measure(
    runners: tuple[Runner, Runner], n_threads: int, prompt: Sequence[int], workload: Workload, progress: Callable[[str], None]
) -> list[Measurement]:
    measurements = []
    if workload.n_generate:
        _turns(runners, lambda runner: _decode(runner, min(16, workload.n_generate)), 1)
        progress(f"{n_threads} thread(s): decode")
        turns = _turns(runners, lambda runner: _decode(runner, workload.n_generate), workload.repeat)
        (ours, _), (theirs, _) = turns[0]
        equal = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(ours))
        measurements.append(_measurement("decode", n_threads, workload.n_generate, [(a[1], b[1]) for a, b in turns], equal))
    if prompt:
        _turns(runners, lambda runner: runner.prefill(prompt), 1)
        progress(f"{n_threads} thread(s): prefill")
        seconds = _turns(runners, lambda runner: runner.prefill(prompt), workload.repeat)
        measurements.append(_measurement("prefill", n_threads, len(prompt), seconds))
    return measurements


def _decode(runner: Runner, n: int) -> tuple[list[int], float]:
    runner.clear()
    return runner.decode_greedy(1, n)


def _turns(runners: tuple[Runner, Runner], run: Callable[[Runner], Result], n: int) -> list[tuple[Result, Result]]:
    """n times: one turn of the first engine, one of the second, each after the other's threads went to sleep."""
    turns = []
    for _ in range(n):
        pair = []
        for runner in runners:
            time.sleep(_SETTLE_S)
            pair.append(run(runner))
        turns.append((pair[0], pair[1]))
    return turns


def _measurement(
    phase: str, n_threads: int, n_tokens: int, seconds: Sequence[tuple[float, float]], equal_tokens: int | None = None
) -> Measurement:
    ours, theirs = (tuple(n_tokens / pair[side] for pair in seconds) for side in (0, 1))
    return Measurement(phase, n_threads, n_tokens, ours, theirs, equal_tokens)
