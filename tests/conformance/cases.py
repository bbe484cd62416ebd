"""The backends under test, each with how it is opened and how near to the reference it must come.

A backend of another package is put to the same tests by its name in the registry: `pytest tests/conformance --backend NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_models import write_tiny

from edgelm.backends.base import Backend
from edgelm.backends.registry import open_backend, unavailable_reason
from edgelm.backends.scripted import ScriptedBackend
from edgelm.runtime.export import export

N_CTX = 64
N_VOCAB = 288

Open = Callable[[Path], Backend]
"""From the path of a tiny GGUF file to a backend with a context of N_CTX tokens."""


@dataclass(frozen=True)
class Case:
    """One backend.

    Attributes:
        open: opens a model file.
        format: block format of the model's linear layers.
        reference_error: how far logits may lie from the reference's, as a share of the largest; None where there is no reference.
        own_error: how far logits may lie from the backend's own, when the same tokens come in other portions or company.
        prepare: makes of the GGUF what `open` opens, once for all tests (an export); by default the GGUF itself.
        reason: why it cannot run here, or None.
    """

    open: Open
    format: str = "F32"
    reference_error: float | None = 1e-4
    own_error: float = 1e-4
    prepare: Callable[[Path], Path] = lambda path: path
    reason: Callable[[], str | None] = lambda: None


def registered(name: str, *, options: Mapping[str, object] = MappingProxyType({}), precision: str | None = None) -> Open:
    """Opens by the registry, with two threads. Exports are kept beside the model, compiled kernels in the user's cache."""

    def open_model(path: Path) -> Backend:
        cache_folder = path.parent if name == "onnx" else None
        return open_backend(name, path, n_threads=2, n_ctx=N_CTX, precision=precision, options=options, cache_folder=cache_folder)

    return open_model


def exported(target: str, **settings: Any) -> Callable[[Path], Path]:
    """Exports the GGUF to a folder beside it, with prompts in chunks of eight tokens."""

    def prepare(path: Path) -> Path:
        folder = path.with_suffix(f".{target}")
        export(path, folder, target=target, n_ctx=N_CTX, chunk=8, **settings)
        return folder

    return prepare


def qnn_reason() -> str | None:
    """Why Qualcomm's provider cannot run here, or None."""
    return (
        None
        if find_spec("onnxruntime_qnn")
        else "onnxruntime-qnn, which has the HTP emulator, is not installed: there is none for this platform"
    )


def open_scripted(path: Path) -> Backend:
    """Logits that depend on the file's seed and on every token so far."""
    seed = int(path.stem.rpartition("-")[2])

    def logits(history: Sequence[int]) -> NDArray[np.float32]:
        return np.random.default_rng([seed, *history]).standard_normal(N_VOCAB).astype(np.float32)

    return ScriptedBackend(logits, n_vocab=N_VOCAB, n_ctx=N_CTX)


def tiny_model(folder: Path, case: Case, seed: int = 0, n_vocab: int = N_VOCAB) -> Path:
    """A llama model of three layers in the case's format, made ready for it."""
    path = write_tiny(folder / f"tiny-{seed}.gguf", "llama", format=case.format, seed=seed, n_ctx=512, n_vocab=n_vocab, tied=False)
    return case.prepare(path)


CASES: Mapping[str, Case] = MappingProxyType(
    {
        "scripted": Case(open_scripted, reference_error=None),
        "cpu": Case(registered("cpu", precision="f32"), format="Q4_0"),
        "cpu-int8": Case(registered("cpu", precision="int8"), format="Q4_1", reference_error=0.06, own_error=0.04),
        "llamacpp": Case(registered("llamacpp", options={"kv_type": "f32"})),
        "onnx": Case(registered("onnx", precision="f32"), format="Q4_0"),
        "onnx-static": Case(registered("onnx", options={"providers": ("cpu",)}), prepare=exported("nnapi")),
        "onnx-qnn": Case(
            registered("onnx", options={"providers": ("qnn",), "strict_provider": True}),
            reference_error=0.08,
            own_error=0.02,
            prepare=exported("qnn"),
            reason=qnn_reason,
        ),
        "onnx-int8": Case(registered("onnx", precision="int8"), format="Q4_1", reference_error=0.06, own_error=0.04),
    }
)


def named(name: str) -> Case:
    """The case of a registered backend that is not among CASES: any precision, so only roughly near the reference."""
    return Case(registered(name), reference_error=0.1, own_error=0.02, reason=lambda: unavailable_reason(name))
