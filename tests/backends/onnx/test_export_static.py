"""Static graphs: fixed shapes, plain operators, float32 and int32 only; names that do not change; every way of writing gives the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from tiny_models import VARIANTS, write_variant

from edgelm.backends.config import ModelConfig
from edgelm.backends.onnx.export_static import StaticForm, StaticGraph, static_graph
from edgelm.backends.onnx.static_decoder import MASK_VALUE, visible_keys
from edgelm.backends.reference import ReferenceModel
from edgelm.quant.open_model import open_model

N_CTX = 32
PLAIN = {"Add", "Concat", "Div", "Gather", "Gemm", "MatMul", "Mul", "ReduceMean", "Reshape", "Sigmoid", "Slice", "Softmax", "Sqrt"}
PLAIN |= {"Tanh", "Transpose"}

Export = Callable[..., tuple[StaticGraph, ModelConfig, Path]]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Gives the static graph of a tiny model, its configuration, and its file."""

    def graph_of(variant: str, n: int = 5, form: StaticForm | None = None) -> tuple[StaticGraph, ModelConfig, Path]:
        path = tmp_path / f"{variant}.gguf"
        if not path.exists():
            write_variant(path, variant)
        file = open_model(path)
        reference = ReferenceModel(file)
        return static_graph(reference.tensors, reference.config, n, N_CTX, form), reference.config, path

    return graph_of


def run_first_tokens(graph: StaticGraph, config: ModelConfig, tokens: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]:
    """All outputs for tokens that begin a sequence, with noise in the cache."""
    session = ort.InferenceSession(graph.with_weights().SerializeToString(), providers=["CPUExecutionProvider"])
    n = len(tokens)
    inputs: dict[str, NDArray[np.generic]] = {}
    for tensor in session.get_inputs():
        if tensor.name == "input_ids":
            inputs[tensor.name] = tokens
        elif tensor.name == "positions":
            inputs[tensor.name] = np.arange(n, dtype=np.int32)
        elif tensor.name.endswith("attention_mask"):
            window = config.sliding_window if tensor.name.startswith("local") else N_CTX + n
            inputs[tensor.name] = np.where(visible_keys(0, n, N_CTX, window), np.float32(0), MASK_VALUE)[None, None]
        else:
            inputs[tensor.name] = np.random.default_rng(1).standard_normal(tensor.shape).astype(np.float32)
    names = [tensor.name for tensor in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_architecture_needs_plain_operators_and_fixed_shapes_only(variant: str, export: Export) -> None:
    graph, _, _ = export(variant)
    model = graph.with_weights()
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} <= PLAIN
    assert {node.domain for node in model.graph.node} == {""}
    shaped = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*shaped.input, *shaped.output, *shaped.value_info]
    assert {value.type.tensor_type.elem_type for value in values} == {TensorProto.FLOAT, TensorProto.INT32}
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values]
    assert all(1 <= len(shape) <= 4 and min(shape) > 0 for shape in shapes)
    assert len(values) == len(model.graph.node) + len(model.graph.input)


@pytest.mark.parametrize("variant", ["llama-biases", "granite", "gemma2", "gemma3"])
@pytest.mark.parametrize(
    "form",
    [StaticForm("gemm"), StaticForm("matmul", opset=21), StaticForm("conv"), StaticForm("gemm", norm="operator", opset=23)],
    ids=str,
)
def test_every_form_computes_what_the_reference_does(variant: str, form: StaticForm, export: Export) -> None:
    tokens = np.random.default_rng(0).integers(0, 288, 21).astype(np.int32)
    graph, config, path = export(variant, len(tokens), form)
    outputs = run_first_tokens(graph, config, tokens)
    reference = ReferenceModel(open_model(path), N_CTX)
    for name, wanted in (("logits", reference.logits(tokens)), ("hidden_states", reference.hidden(tokens))):
        np.testing.assert_allclose(outputs[name], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_new_keys_are_transposed_and_values_are_not(export: Export) -> None:
    tokens = np.arange(5, dtype=np.int32)
    graph, config, _ = export("llama")
    outputs = run_first_tokens(graph, config, tokens)
    for layer in range(config.n_layers):
        assert outputs[f"new_key_values.{layer}.key"].shape == (1, config.n_kv_heads, config.head_dim, 5)
        assert outputs[f"new_key_values.{layer}.value"].shape == (1, config.n_kv_heads, 5, config.head_dim)


def test_weights_have_the_same_names_whatever_the_number_of_tokens(export: Export) -> None:
    prefill, decode = export("gemma3", 16)[0], export("gemma3", 1)[0]
    assert set(prefill.weights) == set(decode.weights)
    assert {"embedding.weight", "layers.3.attention.q.weight", "layers.7.feed_forward.down.weight", "hidden_states.weight"} <= set(
        prefill.weights
    )
    assert [node.name for node in prefill.model.graph.node] == [node.name for node in decode.model.graph.node]
    assert {"layers.3.attention.scores", "layers.3.attention.probabilities", "logits"} <= {node.name for node in prefill.model.graph.node}


@pytest.mark.parametrize("form", [StaticForm("gemm"), StaticForm("matmul"), StaticForm("conv")], ids=str)
def test_weights_have_the_shape_they_announce_and_are_only_read_on_demand(form: StaticForm, export: Export) -> None:
    graph, _, _ = export("qwen3", 2, form)
    assert {tensor.data_type for tensor in graph.model.graph.initializer} == {TensorProto.INT64}
    for weight in graph.weights.values():
        values = weight.read()
        assert values.shape == weight.shape
        assert values.dtype == np.float32
        assert weight.n_bytes == values.nbytes


def test_a_tied_output_layer_shares_the_embedding(export: Export) -> None:
    tied, untied = export("llama")[0], export("llama-untied")[0]
    assert "output.weight" not in tied.weights
    assert {"output.weight", "embedding.weight"} <= set(untied.weights)


def test_only_models_that_rotate_take_positions(export: Export) -> None:
    def inputs(variant: str) -> set[str]:
        return {tensor.name for tensor in export(variant)[0].model.graph.input}

    assert "positions" in inputs("granite")
    assert "positions" not in inputs("granite-no-rope")
    assert "local_attention_mask" not in inputs("granite")
    assert {"attention_mask", "local_attention_mask"} <= inputs("gemma2")
