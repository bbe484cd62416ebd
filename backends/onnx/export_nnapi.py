"""Exports a model for Android's NNAPI: float graphs of fixed shapes, and what NNAPI would run of them.

Weights lie within the graph files, because ONNX Runtime's NNAPI provider takes no node whose weights lie elsewhere. A file of protobuf
holds at most 2 GiB, which bounds the model: about 500 million weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from edgelm.backends.base import Progress
from edgelm.backends.config import read_config
from edgelm.backends.onnx.export import ExportOptions, ExportReport, stored_formats
from edgelm.backends.onnx.export_static import StaticGraph, static_graph
from edgelm.backends.onnx.mobile_report import MobileReport, mobile_report
from edgelm.backends.weights import read_tensors
from edgelm.errors import UnsupportedModelError
from edgelm.quant.exported_folder import GraphFile, Manifest
from edgelm.quant.model_file import ModelFile

_MAX_FILE_BYTES = 2**31 - 2**24  # protobuf's limit, less room for the graph itself
_MIN_SHARE = 0.5  # of the nodes


def export_nnapi(file: ModelFile, folder: Path, options: ExportOptions, progress: Progress) -> ExportReport:
    """Write prefill.onnx and decode.onnx (with a chunk of 1 only the latter) into the folder; manifest and metadata are the caller's.

    The report's notes are what the mobile-usability checker says of each graph; the manifest's details keep it as JSON.

    Raises:
        ModelFileError: a tensor is missing or has a wrong shape.
        UnsupportedModelError: the model is not one that edgelm runs, is too large for the format, or NNAPI would run almost none of it.
    """
    config = read_config(file.metadata)
    tensors = read_tensors(file, config)
    n_ctx = options.context(config)
    names = {options.chunk: "prefill", 1: "decode"}
    graphs = {name: static_graph(tensors, config, n_tokens, n_ctx) for n_tokens, name in names.items()}
    check_size(graphs["decode"], file.path.name)
    progress("asking the mobile-usability checker which nodes NNAPI would run")
    reports = tuple(mobile_report(f"{name}.onnx", without_data(graph)) for name, graph in graphs.items())
    require_nnapi(reports)
    for name, graph in graphs.items():
        progress(f"writing {name}.onnx")
        onnx.save(graph.with_weights(), folder / f"{name}.onnx")
    manifest = Manifest(
        target="nnapi",
        n_ctx=n_ctx,
        precision="f32",
        kv_type="f32",
        graphs=tuple(GraphFile(f"{name}.onnx", n_tokens) for n_tokens, name in names.items()),
        details={"mobile_reports": [report.as_json() for report in reports]},
    )
    return ExportReport(
        folder,
        manifest,
        stored_formats(file, lambda tensor: ("float32", 4 * math.prod(tensor.shape)), exact=True),
        tuple(report.text for report in reports),
    )


def check_size(graph: StaticGraph, name: str) -> None:
    """
    Raises:
        UnsupportedModelError: the weights do not fit one file.
    """
    n_bytes = sum(weight.n_bytes for weight in graph.weights.values())
    if n_bytes > _MAX_FILE_BYTES:
        raise UnsupportedModelError(
            f"{name} has {n_bytes / 2**30:.1f} GiB of float32 weights, but NNAPI takes them only within the graph's file, "
            "which holds at most 2 GiB; choose a smaller model, or another target"
        )


def without_data(graph: StaticGraph) -> onnx.ModelProto:
    """The model with the types and shapes of its weights, but none of their values."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for name, weight in graph.weights.items():
        model.graph.initializer.append(TensorProto(name=name, data_type=TensorProto.FLOAT, dims=weight.shape))
    return model


def require_nnapi(reports: Sequence[MobileReport]) -> None:
    """
    Raises:
        UnsupportedModelError: NNAPI would run less than half of a graph's nodes.
    """
    for report in reports:
        if report.share < _MIN_SHARE:
            raise UnsupportedModelError(
                f"NNAPI would run almost none of this model; export it for another target (cpu, qnn). The checker's report:\n{report.text}"
            )
