"""Export for Qualcomm: every node runs on the tensor processor (its emulator), near the float reference, with no fall to the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import write_variant

from edgelm.backends.base import Chunk, Outputs
from edgelm.backends.onnx import providers
from edgelm.backends.onnx.export import ExportOptions, ExportReport, export_model
from edgelm.backends.onnx.providers import unavailable_reason
from edgelm.backends.reference import ReferenceModel
from edgelm.backends.registry import open_backend
from edgelm.errors import BackendUnavailableError, InvalidRequestError
from edgelm.quant.open_model import open_model

RNG = np.random.default_rng(0)
CALIBRATION = tuple(RNG.integers(0, 288, 1024).tolist())
TOKENS = RNG.integers(0, 288, 29).astype(np.int32)
OPTIONS = ExportOptions("qnn", n_ctx=40, chunk=8, calibration=CALIBRATION)

Export = Callable[..., ExportReport]


@pytest.fixture
def needs_qnn() -> None:
    reason = unavailable_reason("qnn")
    if reason is not None:
        pytest.skip(f"the provider qnn: {reason}")


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Exports a tiny model; gives the report."""

    def exported(variant: str = "llama", **changes: object) -> ExportReport:
        model = open_model(write_variant(tmp_path / f"{variant}.gguf", variant))
        return export_model(model, tmp_path / variant, dataclasses.replace(OPTIONS, **changes))

    return exported


def divergence(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Mean Kullback-Leibler divergence of the distributions from the reference's."""
    log_p, log_q = (x - x.max(axis=1, keepdims=True) for x in (reference, logits))
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (log_p, log_q))
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


@pytest.mark.usefixtures("needs_qnn")
@pytest.mark.parametrize("variant", ["llama", "llama-biases", "phi3-partial-rope", "qwen3", "gemma2", "gemma3"])
def test_every_architecture_runs_wholly_on_the_tensor_processor(variant: str, export: Export) -> None:
    folder = export(variant).folder
    reference = ReferenceModel(open_model(folder.with_suffix(".gguf")), OPTIONS.n_ctx or 0).logits(TOKENS)
    backend = open_backend("onnx", folder, options={"strict_provider": True})
    assert set(backend.info.providers) == {"qnn"}
    by_chunks = backend.forward([Chunk(0, TOKENS, Outputs.ALL)])
    one_by_one = np.concatenate([backend.forward([Chunk(1, TOKENS[i : i + 1])]) for i in range(4)])
    backend.close()
    assert divergence(by_chunks, reference) < 0.004
    assert divergence(one_by_one, reference[:4]) < 0.004
    assert np.mean(by_chunks.argmax(axis=1) == reference.argmax(axis=1)) > 0.75


def test_the_report_says_that_weights_were_requantized(export: Export) -> None:
    report = export()
    (stored,) = report.formats
    assert (stored.format, stored.exact, stored.n_matrices) == ("F32", False, 22)
    assert "int8, one scale per output channel" in stored.stored
    assert stored.bytes_after < stored.bytes_before / 3.5
    assert "requantized to int8" in report.notes[0]
    assert "4 bits" in export("qwen2", weight_bits=4).notes[1]


def test_the_manifest_tells_of_the_borders(export: Export) -> None:
    manifest = export("gemma3").manifest
    assert [(graph.file, graph.n_tokens) for graph in manifest.graphs] == [("prefill.onnx", 8), ("decode.onnx", 1)]
    assert (manifest.target, manifest.precision, manifest.kv_type) == ("qnn", "uint16", "int16")
    assert manifest.details["calibration_tokens"] == len(CALIBRATION)
    borders = manifest.details["quantization"]
    assert borders["past_key_values.3.key"] == borders["new_key_values.3.key"]
    assert borders["past_key_values.3.key"]["zero_point"] == 0
    assert borders["logits"]["scale"] > 0
    assert sorted(manifest.files) == ["decode.onnx", "metadata.gguf", "prefill.onnx", "weights.data"]


def test_a_chunk_of_one_token_needs_one_graph(export: Export) -> None:
    manifest = export(chunk=1).manifest
    assert [(graph.file, graph.n_tokens) for graph in manifest.graphs] == [("decode.onnx", 1)]


def test_senseless_requests_leave_nothing(export: Export, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no chip is called 'SM1'"):
        export(soc="SM1")
    with pytest.raises(InvalidRequestError, match="calibration text has no tokens"):
        export(calibration=())
    assert [path.name for path in tmp_path.iterdir()] == ["llama.gguf"]


def test_compiling_needs_the_library_and_quantizing_does_not(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = providers.find_spec
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(providers, "find_spec", lambda name: None if name == "onnxruntime_qnn" else find_spec(name))
    with pytest.raises(BackendUnavailableError, match=r"onnxruntime-qnn is not installed; pip install 'edgelm\[qnn\]'"):
        export(soc="SM8650")
    assert export().manifest.details["weight_bits"] == 8
