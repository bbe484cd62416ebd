"""Exports a model for Qualcomm's tensor processors: two quantized graphs of fixed shapes, compiled for a chip where one is named."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import Progress
from edgelm.backends.config import ModelConfig, read_config
from edgelm.backends.onnx.calibrate_ranges import calibrate_ranges
from edgelm.backends.onnx.context_binary import Soc, compile_graph, find_soc, sha256
from edgelm.backends.onnx.data_file import DataFile
from edgelm.backends.onnx.export import ExportOptions, ExportReport, StoredFormat, stored_formats
from edgelm.backends.onnx.export_static import StaticForm, static_graph
from edgelm.backends.onnx.providers import require_provider
from edgelm.backends.onnx.qdq import QDQOptions, QuantizedWeights, matrix_bits, quantize_graph
from edgelm.backends.onnx.quantization import Quantization, Ranges
from edgelm.backends.weights import ModelTensors, read_tensors
from edgelm.quant.exported_folder import GraphFile, Manifest
from edgelm.quant.model_file import ModelFile, Tensor

DATA_FILE = "weights.data"
_FORM = StaticForm(linear="gemm", norm="operator", opset=23)
_FLOAT16_ROOM = 16384.0  # a quarter of float16's greatest number


def export_qnn(file: ModelFile, folder: Path, options: ExportOptions, progress: Progress) -> ExportReport:
    """Write the graphs for a chunk of tokens and for one into the folder (with a chunk of 1 only that); the caller writes the manifest.

    Without options.soc the folder has quantized ONNX graphs, which the device compiles when it opens them; with it, what was compiled.

    Raises:
        InvalidRequestError: no calibration tokens, or an unknown chip.
        BackendUnavailableError: a chip is named, and onnxruntime-qnn is not installed.
        ModelFileError, UnsupportedModelError: the model is damaged, not one that edgelm runs, or not one that the chip takes.
    """
    soc = find_soc(options.soc) if options.soc is not None else None
    if soc is not None:
        require_provider("qnn")
    config = read_config(file.metadata)
    tensors = read_tensors(file, config)
    n_ctx = options.context(config)
    quantizing = QDQOptions(weight_bits=options.weight_bits, float_stream=soc is None or soc.has_float16)
    form, ranges = _calibrate(tensors, config, np.array(options.calibration, np.int32), quantizing, folder, progress)
    names = {options.chunk: "prefill.onnx", 1: "decode.onnx"}
    details: dict[str, Any] = {"calibration_tokens": len(options.calibration), "weight_bits": options.weight_bits}
    with tempfile.TemporaryDirectory(dir=folder, prefix="quantized-") as temporary:
        place = folder if soc is None else Path(temporary)
        with DataFile(place / DATA_FILE) as data:
            weights = QuantizedWeights(data, options.weight_bits)
            borders: Mapping[str, Quantization] = {}
            for n_tokens, name in names.items():
                progress(f"quantizing {name}")
                graph = quantize_graph(static_graph(tensors, config, n_tokens, n_ctx, form), ranges, quantizing, weights)
                (place / name).write_bytes(graph.model.SerializeToString())
                borders = graph.borders
        details["quantization"] = {name: asdict(quantization) for name, quantization in borders.items()}
        if soc is not None:
            details |= _compile(place, folder, tuple(names.values()), soc, progress)
    manifest = Manifest(
        target="qnn",
        n_ctx=n_ctx,
        precision="uint16",
        kv_type=quantizing.kv_type,
        graphs=tuple(GraphFile(name, n_tokens) for n_tokens, name in names.items()),
        details=details,
    )
    return ExportReport(folder, manifest, _formats(file, options.weight_bits), _notes(quantizing, soc))


def _calibrate(
    tensors: ModelTensors, config: ModelConfig, tokens: NDArray[np.int32], quantizing: QDQOptions, folder: Path, progress: Progress
) -> tuple[StaticForm, Ranges]:
    """The form of the graphs, and the ranges of their tensors. The stream is scaled down, by a power of two, where float16 calls for it."""
    ranges = calibrate_ranges(tensors, config, tokens, _FORM, folder, progress=progress)
    greatest = max(max(-span.low, span.high) for name, span in ranges.items() if name.endswith(".residual"))
    if not quantizing.float_stream or greatest <= _FLOAT16_ROOM:
        return _FORM, ranges
    form = replace(_FORM, stream_scale=2.0 ** -math.ceil(math.log2(greatest / _FLOAT16_ROOM)))
    progress(f"the residual stream reaches {greatest:.0f}, near float16's end: held times {form.stream_scale:g}, and calibrated again")
    return form, calibrate_ranges(tensors, config, tokens, form, folder, progress=progress)


def _compile(place: Path, folder: Path, names: tuple[str, ...], soc: Soc, progress: Progress) -> dict[str, Any]:
    """Compile the graphs in `place` into the folder; what the manifest says of it."""
    sums: dict[str, str] = {}
    for name in names:
        progress(f"compiling {name} for {soc.name} ({soc.title})")
        sums |= {path.name: sha256(path) for path in compile_graph(place / name, folder / name, soc)}
    sdk = import_module("onnxruntime_qnn.build_and_package_info").qnn_version
    return {"soc": soc.name, "htp_arch": soc.htp_arch, "qnn_sdk": sdk, "binaries": sums}


def _formats(file: ModelFile, bits: int) -> tuple[StoredFormat, ...]:
    """Every matrix gets one scale per output channel, whatever blocks it had."""

    def becomes(tensor: Tensor) -> tuple[str, int]:
        width = matrix_bits(tensor.name, bits)
        return f"int{width}, one scale per output channel", math.prod(tensor.shape) * width // 8 + 4 * tensor.shape[0]

    return stored_formats(file, becomes, exact=False)


def _notes(quantizing: QDQOptions, soc: Soc | None) -> tuple[str, ...]:
    bits = quantizing.weight_bits
    notes = [f"weights were requantized to int{bits} with one scale per output channel, and activations to uint16: not exact"]
    if bits == 4:
        notes.append(
            "4 bits with one scale per output channel cost much quality, so the output layer and ffn_down have 8; prefer 8 for all"
        )
    if soc is not None and not soc.has_float16:
        notes.append(f"{soc.name} has no float16, so the residual stream is uint16 too, which costs quality")
    return tuple(notes)
