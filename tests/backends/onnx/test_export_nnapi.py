"""Export for NNAPI: every node is one that its provider takes, weights are within the graphs, and the folder runs on the CPU too."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tiny_models import VARIANTS, write_variant

from edgelm.backends.onnx.decoder import Run
from edgelm.backends.onnx.export import ExportOptions, ExportReport, export_model
from edgelm.backends.onnx.export_nnapi import check_size, require_nnapi, without_data
from edgelm.backends.onnx.export_static import StaticGraph, Weight, static_graph
from edgelm.backends.onnx.mobile_report import MobileReport
from edgelm.backends.onnx.session import SessionSettings
from edgelm.backends.onnx.static_decoder import StaticDecoder
from edgelm.backends.reference import ReferenceModel
from edgelm.errors import UnsupportedModelError
from edgelm.quant.exported_folder import ExportedFolder
from edgelm.quant.open_model import open_model

Export = Callable[..., ExportReport]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Exports a tiny model; gives the report."""

    def exported(variant: str = "llama", chunk: int = 8, **changes: object) -> ExportReport:
        model = open_model(write_variant(tmp_path / f"{variant}.gguf", variant, **changes))
        return export_model(model, tmp_path / variant, ExportOptions("nnapi", n_ctx=48, chunk=chunk))

    return exported


@pytest.mark.parametrize("variant", VARIANTS)
def test_nnapi_would_run_every_node_of_every_architecture(variant: str, export: Export) -> None:
    report = export(variant)
    graphs = report.manifest.details["mobile_reports"]
    assert [graph["graph"] for graph in graphs] == ["prefill.onnx", "decode.onnx"]
    for graph in graphs:
        assert graph["n_supported"] == graph["n_nodes"] > 100
        assert len(graph["partitions"]) == 1
        assert graph["suitability"] == "YES"


# What the checker does not check: conditions in the builders of ONNX Runtime's NNAPI provider
# (onnxruntime/core/providers/nnapi/nnapi_builtin/builders/impl), and that NNAPI itself has tensors of at most 4 dimensions.
@pytest.mark.parametrize("n_tokens", [8, 1])
@pytest.mark.parametrize("variant", ["llama-biases", "qwen3", "gemma2", "gemma3"])
def test_nodes_meet_the_conditions_of_the_nnapi_provider(variant: str, n_tokens: int, tmp_path: Path) -> None:
    reference = ReferenceModel(open_model(write_variant(tmp_path / "m.gguf", variant)))
    model = without_data(static_graph(reference.tensors, reference.config, n_tokens, 48))
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output, *graph.value_info)}
    shapes = {name: tuple(dim.dim_value for dim in kind.shape.dim) for name, kind in values.items()}
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes |= constants
    assert max(map(len, shapes.values())) == 4
    for node in graph.node:
        first, *others = [shapes[name] for name in node.input]
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Gemm":
            assert len(first) == len(others[0]) == 2
            assert attributes == {"transB": 1}
            assert len(others) == 1 or others[1] == (others[0][0],)
        elif node.op_type == "MatMul":
            assert len(first) == len(others[0]) >= 3
            assert first[:-2] == others[0][:-2]
        elif node.op_type == "Softmax":
            assert len(first) in (2, 4)
            assert attributes["axis"] == len(first) - 1
        elif node.op_type == "Gather":
            assert node.input[0] in constants
            assert values[node.input[1]].elem_type == TensorProto.INT32
        elif node.op_type in ("Slice", "Reshape", "ReduceMean"):
            assert set(node.input[1:]) <= set(constants)


def test_weights_are_within_the_graphs(export: Export) -> None:
    folder = export().folder
    assert {path.name for path in folder.iterdir()} == {"prefill.onnx", "decode.onnx", "metadata.gguf", "edgelm.json"}
    for name in ("prefill.onnx", "decode.onnx"):
        model = onnx.load(folder / name, load_external_data=False)
        assert all(tensor.data_location == TensorProto.DEFAULT for tensor in model.graph.initializer)
        assert [opset.version for opset in model.opset_import] == [18]


def test_the_report_says_what_was_made(export: Export) -> None:
    report = export("llama", format="Q4_1", embedding_format="Q8_0")
    assert (report.manifest.target, report.manifest.n_ctx, report.manifest.precision) == ("nnapi", 48, "f32")
    assert [(graph.file, graph.n_tokens) for graph in report.manifest.graphs] == [("prefill.onnx", 8), ("decode.onnx", 1)]
    assert [note.splitlines()[0].split(":")[0] for note in report.notes] == ["prefill.onnx", "decode.onnx"]
    assert "100.0%" in report.notes[0]
    assert {(format.format, format.stored, format.exact) for format in report.formats} == {
        ("Q4_1", "float32", True),
        ("Q8_0", "float32", True),
    }
    assert ExportedFolder(report.folder).manifest.details["mobile_reports"][0]["suitability"] == "YES"


def test_a_chunk_of_one_needs_no_graph_of_its_own(export: Export) -> None:
    report = export(chunk=1)
    assert [(graph.file, graph.n_tokens) for graph in report.manifest.graphs] == [("decode.onnx", 1)]
    assert not (report.folder / "prefill.onnx").exists()


def test_a_model_of_which_nnapi_would_run_almost_nothing_is_refused() -> None:
    half = MobileReport("prefill.onnx", 100, 50, (50,), (), 0, (), "MAYBE")
    require_nnapi([half])
    with pytest.raises(UnsupportedModelError, match=r"almost none.*\n.*49 of 100 nodes.*\n.*ai\.onnx:Erf"):
        require_nnapi([half, dataclasses.replace(half, n_supported=49, unsupported_operators=("ai.onnx:Erf",))])


def test_a_model_too_large_for_one_file_is_refused_before_anything_is_read() -> None:
    def never_read() -> np.ndarray:
        raise AssertionError

    def graph_of(*shapes: tuple[int, int]) -> StaticGraph:
        return StaticGraph(onnx.ModelProto(), {str(index): Weight(shape, never_read) for index, shape in enumerate(shapes)})

    check_size(graph_of((2**14, 2**14), (2**14, 2**13)), "small.gguf")
    assert math.prod((2**15, 2**14)) * 4 == 2**31
    with pytest.raises(UnsupportedModelError, match=r"large\.gguf has 2\.0 GiB of float32 weights.*smaller model"):
        check_size(graph_of((2**14, 2**14), (2**14, 2**14)), "large.gguf")


def test_smollm2_continues_a_text_as_the_reference_does(smollm2_path: Path, tmp_path: Path) -> None:
    file = open_model(smollm2_path)
    report = export_model(file, tmp_path / "smollm2", ExportOptions("nnapi", n_ctx=48, chunk=1))  # each graph takes half a gigabyte
    assert all(graph["n_supported"] == graph["n_nodes"] for graph in report.manifest.details["mobile_reports"])
    decoder = StaticDecoder(ExportedFolder(report.folder), SessionSettings(n_threads=2), 48)
    decoder.reserve(1)
    tokens = [504, 3575, 282, 4649, 314]  # "The capital of France is"
    n_prompt = len(tokens)
    (logits,) = decoder.run([Run(0, 0, np.array(tokens, np.int32), np.array([n_prompt - 1]))], False)
    for _ in range(20):
        tokens.append(int(logits[0].argmax()))
        (logits,) = decoder.run([Run(0, len(tokens) - 1, np.array(tokens[-1:], np.int32), np.array([0]))], False)
    decoder.close()
    wanted = ReferenceModel(file, 48).logits(np.array(tokens, np.int32))
    assert tokens[n_prompt:] == wanted[n_prompt - 1 : -1].argmax(axis=1).tolist()
    np.testing.assert_allclose(logits[0], wanted[-1], rtol=0, atol=1e-4 * np.abs(wanted).max())
