"""Exports a model for Android's NNAPI: float graphs of fixed shapes, and what NNAPI would run of them.

Weights lie within the graph files, because ONNX Runtime's NNAPI provider takes no node whose weights lie elsewhere. A file of protobuf
holds at most 2 GiB, which bounds the model: about 500 million weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from edgelm.backends.config import read_config
from edgelm.backends.onnx.export_static import StaticGraph, static_graph
from edgelm.backends.onnx.mobile_report import MobileReport, mobile_report
from edgelm.backends.onnx.static_decoder import MASK_VALUE
from edgelm.backends.weights import read_tensors
from edgelm.errors import UnsupportedModelError
from edgelm.quant.exported_folder import GraphFile, Manifest, write_manifest, write_metadata
from edgelm.quant.model_file import ModelFile

Progress = Callable[[str], None]

_MAX_FILE_BYTES = 2**31 - 2**24  # protobuf's limit, less room for the graph itself
_MIN_SHARE = 0.5  # of the nodes


def write_nnapi(file: ModelFile, folder: Path, *, n_ctx: int, chunk: int, progress: Progress) -> tuple[MobileReport, ...]:
    """Write graphs, metadata and manifest into an empty folder.

    Args:
        n_ctx: tokens that one sequence may hold.
        chunk: tokens of the graph that reads prompts; 1 for none of its own, so that prompts are read token by token.
        progress: called with a line before anything that takes long.

    Returns:
        What the mobile-usability checker says of each graph.

    Raises:
        ModelFileError: a tensor is missing or has a wrong shape, or the folder cannot be written.
        UnsupportedModelError: the model is not one that edgelm runs, is too large for the format, or NNAPI would run almost none of it.
    """
    config = read_config(file.metadata)
    tensors = read_tensors(file, config)
    names = {chunk: "prefill", 1: "decode"}
    graphs = {name: static_graph(tensors, config, n_tokens, n_ctx) for n_tokens, name in names.items()}
    check_size(graphs["decode"], file.path.name)
    progress("asking the mobile-usability checker which nodes NNAPI would run")
    reports = tuple(mobile_report(name, without_data(graph)) for name, graph in graphs.items())
    require_nnapi(reports)
    for name, graph in graphs.items():
        progress(f"writing {name}.onnx")
        onnx.save(graph.with_weights(), folder / f"{name}.onnx")
    write_metadata(folder, file.metadata)
    write_manifest(folder, _manifest(names, n_ctx, reports))
    return reports


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


def _manifest(names: dict[int, str], n_ctx: int, reports: Sequence[MobileReport]) -> Manifest:
    return Manifest(
        target="nnapi",
        n_ctx=n_ctx,
        precision="f32",
        kv_type="f32",
        graphs=tuple(GraphFile(f"{name}.onnx", n_tokens) for n_tokens, name in names.items()),
        details={"mask_value": MASK_VALUE, "mobile_reports": [report.as_json() for report in reports]},
    )
