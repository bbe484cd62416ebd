"""Quantized graphs: whole numbers at the borders, one quantization for what only moves, and logits near the float ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from tiny_models import VARIANTS, write_variant

from edgelm.backends.config import read_config
from edgelm.backends.onnx.calibrate_ranges import calibrate_ranges
from edgelm.backends.onnx.data_file import DataFile
from edgelm.backends.onnx.export_static import StaticForm, static_graph
from edgelm.backends.onnx.qdq import QDQOptions, QuantizedGraph, QuantizedWeights, quantize_graph, residual_stream
from edgelm.backends.onnx.session import SessionSettings, open_session
from edgelm.backends.onnx.static_decoder import MASK_VALUE, visible_keys
from edgelm.backends.reference import ReferenceModel
from edgelm.backends.weights import read_tensors
from edgelm.errors import InvalidRequestError
from edgelm.quant.open_model import open_model

N, N_CTX = 24, 48
RNG = np.random.default_rng(0)
CALIBRATION = RNG.integers(0, 288, 1024).astype(np.int32)
TOKENS = RNG.integers(0, 288, N).astype(np.int32)
MOVES = ("Reshape", "Transpose", "Slice", "Concat")


@dataclass(frozen=True)
class Quantized:
    """The graph that reads N tokens, where it lies, and the reference."""

    graph: QuantizedGraph
    path: Path
    reference: ReferenceModel

    @property
    def constants(self) -> Mapping[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.graph.model.graph.initializer}

    def logits(self) -> NDArray[np.float32]:
        """Of TOKENS, by ONNX Runtime's own float kernels between the codes."""
        session = open_session(self.path, SessionSettings(config={"session.disable_quant_qdq": "1"})).ort
        borders = self.graph.borders
        inputs: dict[str, NDArray[Any]] = {"input_ids": TOKENS, "positions": np.arange(N, dtype=np.int32)}
        for tensor in session.get_inputs():
            if tensor.name.endswith("attention_mask"):
                window = self.reference.config.sliding_window if tensor.name.startswith("local") else N + N_CTX
                inputs[tensor.name] = borders[tensor.name].codes(np.where(visible_keys(0, N, N_CTX, window), np.float32(0), MASK_VALUE))[
                    None, None
                ]
            elif tensor.name not in inputs:
                inputs[tensor.name] = np.zeros(tensor.shape, borders[tensor.name].type)
        names = {tensor.name for tensor in session.get_inputs()}
        (codes,) = session.run(["logits"], {name: values for name, values in inputs.items() if name in names})
        scale, zero_point = borders["logits"].scale, borders["logits"].zero_point
        values: NDArray[np.float32] = (codes.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
        return values


Quantize = Callable[..., Quantized]


@pytest.fixture
def quantize(tmp_path: Path) -> Quantize:
    """Quantizes a tiny model."""

    def quantized(variant: str = "llama", options: QDQOptions | None = None, stream_scale: float = 1.0) -> Quantized:
        options = options or QDQOptions()
        file = open_model(write_variant(tmp_path / f"{variant}.gguf", variant))
        config = read_config(file.metadata)
        tensors = read_tensors(file, config)
        form = StaticForm(linear="gemm", norm="operator", opset=23, stream_scale=stream_scale)
        ranges = calibrate_ranges(tensors, config, CALIBRATION, form, tmp_path, window=64)
        with DataFile(tmp_path / "weights.data") as data:
            graph = quantize_graph(
                static_graph(tensors, config, N, N_CTX, form), ranges, options, QuantizedWeights(data, options.weight_bits)
            )
        path = tmp_path / f"{variant}.onnx"
        path.write_bytes(graph.model.SerializeToString())
        return Quantized(graph, path, ReferenceModel(file, N_CTX))

    return quantized


def divergence(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Mean Kullback-Leibler divergence of the distributions from the reference's."""
    log_p, log_q = (x - x.max(axis=1, keepdims=True) for x in (reference, logits))
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (log_p, log_q))
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_near_the_references(variant: str, quantize: Quantize) -> None:
    model = quantize(variant)
    assert divergence(model.logits(), model.reference.logits(TOKENS)) < 0.004


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (QDQOptions(float_stream=False), 0.004),
        (QDQOptions(kv_type="uint8"), 0.01),
        (QDQOptions(weight_bits=4), 0.5),
        (QDQOptions(headroom=2.0), 0.004),
    ],
)
@pytest.mark.parametrize("variant", ["llama", "gemma3", "qwen2"])
def test_every_option_keeps_the_logits(variant: str, options: QDQOptions, limit: float, quantize: Quantize) -> None:
    model = quantize(variant, options)
    assert divergence(model.logits(), model.reference.logits(TOKENS)) < limit


@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_a_scaled_stream_gives_the_same_logits(variant: str, quantize: Quantize) -> None:
    model = quantize(variant, stream_scale=0.25)
    assert divergence(model.logits(), model.reference.logits(TOKENS)) < 0.004


@pytest.mark.parametrize("kv_type", ["int16", "uint8"])
def test_nothing_is_float_at_the_borders(kv_type: str, quantize: Quantize) -> None:
    graph = quantize("gemma3", QDQOptions(kv_type=kv_type)).graph
    types = {
        info.name: TensorProto.DataType.Name(info.type.tensor_type.elem_type).lower()
        for info in (*graph.model.graph.input, *graph.model.graph.output)
    }
    assert types.pop("input_ids") == types.pop("positions") == "int32"
    assert types == {name: border.type for name, border in graph.borders.items()}
    assert {name: kind for name, kind in types.items() if "key_values" not in name} == {
        "attention_mask": "uint16",
        "local_attention_mask": "uint16",
        "logits": "uint16",
        "hidden_states": "uint16",
    }
    assert {kind for name, kind in types.items() if "key_values" in name} == {kv_type}


def test_new_keys_and_values_have_the_caches_quantization(quantize: Quantize) -> None:
    borders = quantize().graph.borders
    for layer in range(3):
        for part in ("key", "value"):
            assert borders[f"new_key_values.{layer}.{part}"] == borders[f"past_key_values.{layer}.{part}"]


def test_moving_never_rounds(quantize: Quantize) -> None:
    model = quantize("gemma3")
    nodes = model.graph.model.graph.node
    producers = {name: node for node in nodes for name in node.output}
    consumers = {node.input[0]: node for node in nodes if node.op_type == "QuantizeLinear"}
    parameters = lambda node: [numpy_helper.to_array(model.constants[name]).item() for name in node.input[1:3]]  # noqa: E731
    moving = [node for node in nodes if node.op_type in MOVES]
    assert len(moving) > 100
    for node in moving:
        sources = [producers[name] for name in node.input if name in producers]
        assert sources
        assert all(parameters(source) == parameters(consumers[node.output[0]]) for source in sources), node.name


@pytest.mark.parametrize("bits", [8, 4])
def test_matrices_have_one_scale_for_each_output_channel(bits: int, quantize: Quantize) -> None:
    model = quantize("qwen2", QDQOptions(weight_bits=bits))
    nodes = model.graph.model.graph.node
    producers = {name: node for node in nodes for name in node.output}
    layers = [node for node in nodes if node.op_type == "Gemm"]
    assert len(layers) == 3 * 7 + 1
    for layer in layers:
        x, matrix, *bias = (producers[name] for name in layer.input)
        codes, scales, zeros = (model.constants[name] for name in matrix.input)
        wide = bits == 8 or layer.name == "logits" or layer.name.endswith(".down")
        kind = TensorProto.INT8 if wide else TensorProto.INT4
        assert (codes.data_type, zeros.data_type) == (kind, kind)
        assert list(scales.dims) == list(zeros.dims) == [codes.dims[0]]
        assert matrix.attribute[0].i == 0
        if bias:
            values, steps, _ = (model.constants[name] for name in bias[0].input)
            x_scale = numpy_helper.to_array(model.constants[x.input[1]])
            matrix_scales = numpy_helper.to_array(scales, str(model.path.parent))
            assert values.data_type == TensorProto.INT32
            assert numpy_helper.to_array(steps) == pytest.approx(x_scale * matrix_scales)


def test_the_stream_is_float_and_all_else_passes_through_codes(quantize: Quantize) -> None:
    for float_stream in (True, False):
        nodes = quantize("gemma3", QDQOptions(float_stream=float_stream)).graph.model.graph.node
        quantized = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
        exact = {name for node in nodes for name in node.output if name.endswith(".exact")} - quantized
        names = {name.removesuffix(".exact") for name in exact}
        if not float_stream:
            assert not names
            continue
        blocks = [f"layers.{layer}.{part}" for layer in range(8) for part in ("attention.residual", "feed_forward.residual")]
        norms = [f"layers.{layer}.{part}.norm" for layer in range(8) for part in ("attention.output", "feed_forward.down")]
        assert names == {"embedding.scaled", *blocks, *norms}


def test_the_stream_of_a_plain_model_is_its_sums(tmp_path: Path) -> None:
    file = open_model(write_variant(tmp_path / "llama.gguf", "llama"))
    config = read_config(file.metadata)
    graph = static_graph(read_tensors(file, config), config, 2, 4, StaticForm(linear="gemm", norm="operator", opset=23))
    assert residual_stream(graph) == {f"layers.{layer}.{part}.residual" for layer in range(3) for part in ("attention", "feed_forward")}


def test_graphs_of_one_model_share_scales_and_weights(tmp_path: Path) -> None:
    file = open_model(write_variant(tmp_path / "llama.gguf", "llama"))
    config = read_config(file.metadata)
    tensors = read_tensors(file, config)
    form = StaticForm(linear="gemm", norm="operator", opset=23)
    ranges = calibrate_ranges(tensors, config, CALIBRATION, form, tmp_path)
    with DataFile(tmp_path / "weights.data") as data:
        weights = QuantizedWeights(data, 8)
        first = quantize_graph(static_graph(tensors, config, 8, N_CTX, form), ranges, QDQOptions(), weights)
        size = (tmp_path / "weights.data").stat().st_size
        second = quantize_graph(static_graph(tensors, config, 1, N_CTX, form), ranges, QDQOptions(), weights)
    assert first.borders == second.borders
    assert (tmp_path / "weights.data").stat().st_size - size < 10_000  # what the first graph left in the file's buffer


def test_ranges_of_another_graph_are_refused(tmp_path: Path) -> None:
    file = open_model(write_variant(tmp_path / "llama.gguf", "llama"))
    config = read_config(file.metadata)
    graph = static_graph(read_tensors(file, config), config, 2, 4, StaticForm(linear="gemm", norm="operator", opset=23))
    with DataFile(tmp_path / "weights.data") as data, pytest.raises(InvalidRequestError, match="calibrate a graph of the same model"):
        quantize_graph(graph, {}, QDQOptions(), QuantizedWeights(data, 8))
