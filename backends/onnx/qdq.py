"""Turns a float graph of plain operators into a quantized one: every tensor passes through QuantizeLinear and DequantizeLinear ("QDQ").

Activations have one scale per tensor: uint16 between the ends of their calibrated range. Matrices of linear layers have one scale per
output channel: int8 or int4, zero point 0. Biases are int32 in units of the product's scale. Keys and values are int16 with zero point 0,
or uint8: Qualcomm's HTP computes a product of two int16 tensors to some 3e-4, but cuts the second of two uint16 tensors to 8 bits (1e-2).

The residual stream may stay float, which HTP computes in float16: in most models single tokens have values there that are thousands of
times greater than all others, so that steps of one size fit it badly.

Tensors that only move (Reshape, Transpose, Slice, Concat, Gather) share one scale and zero point, so that moving never rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgelm.backends.onnx.data_file import DataFile
from edgelm.backends.onnx.export_static import StaticGraph
from edgelm.backends.onnx.quantization import Quantization, Range, Ranges, asymmetric, pack_nibbles, quantize_channels, symmetric
from edgelm.errors import InvalidRequestError

_MOVES = {"Reshape": 1, "Transpose": 1, "Slice": 1, "Gather": 1, "Concat": None}
"""Operators whose output holds values of their first inputs unchanged, with how many of these; None for all."""

_KNOWN_RANGES = {"Softmax": Range(0.0, 1.0), "Sigmoid": Range(0.0, 65535 / 65536), "Tanh": Range(-1.0, 32767 / 32768)}
"""These need no calibration; of Sigmoid and Tanh in 16 bits, Qualcomm's operators ask for just these scales (2^-16, 2^-15)."""

_MASK_DEPTH = 16.0
"""How far below the least score a masked one lies: exp(-16) is a hundredth of the least probability that 16 bits hold."""


@dataclass(frozen=True)
class QDQOptions:
    """How a graph is quantized.

    Attributes:
        weight_bits: of the matrices of linear layers, 8 or 4; at 4 the output layer and the last matrix of each feed-forward network
            keep 8.
        kv_type: of keys and values, "int16" or "uint8".
        float_stream: leave the residual stream float.
        headroom: calibrated ranges are widened by this factor, as another text may go beyond the calibration's.
    """

    weight_bits: int = 8
    kv_type: str = "int16"
    float_stream: bool = True
    headroom: float = 1.2


@dataclass(frozen=True)
class QuantizedGraph:
    """A quantized model.

    Attributes:
        model: the graph; its large constants are in the data file.
        borders: how each input and output is quantized, by name; those that are whole numbers by nature have no entry.
    """

    model: onnx.ModelProto
    borders: Mapping[str, Quantization]


def quantize_graph(graph: StaticGraph, ranges: Ranges, options: QDQOptions, weights: QuantizedWeights) -> QuantizedGraph:
    """The quantized form of a float graph whose linear layers are written as Gemm.

    Inputs and outputs keep their names; those that were float hold codes afterwards. Graphs that differ only in their number of tokens get
    the same scales and share their weights.

    Args:
        ranges: of every tensor that a node gives (calibrate_ranges).
        weights: takes the weights; the same for all graphs of one model.

    Raises:
        InvalidRequestError: the ranges are not of this graph.
    """
    stream = residual_stream(graph) if options.float_stream else frozenset()
    return _Quantizer(graph, weights, _Scales(graph, ranges, options, stream), stream).run()


def residual_stream(graph: StaticGraph) -> frozenset[str]:
    """The sums that the final norm is reached through, and what norms and scalings add to them; not what linear layers and lookups give."""
    producers = {name: node for node in graph.model.graph.node for name in node.output}
    found: set[str] = set()
    pending = [producers["hidden_states"].input[0]]
    while pending:
        node = producers.get(pending.pop())
        if node is not None and node.op_type in ("Add", "Mul", "RMSNormalization") and node.output[0] not in found:
            found.add(node.output[0])
            pending += node.input if node.op_type == "Add" else []
    return frozenset(found)


def matrix_bits(name: str, bits: int) -> int:
    """Bits of one matrix, by its name in the graph or in GGUF, where most have `bits`.

    Of 4 bits per channel, the output layer and the matrices that write the residual stream's greatest values suffer most: with 8 bits for
    these alone, SmolLM2-135M's mean divergence falls from 2.1 to 0.6.
    """
    sensitive = name.startswith(("embedding.", "output.", "token_embd.")) or ".feed_forward.down." in name or ".ffn_down." in name
    return 8 if sensitive else bits


class QuantizedWeights:
    """The weights of one model, each quantized and stored once for all its graphs.

    Args:
        data: the file that takes them.
        bits: 8 or 4, of the matrices (QDQOptions.weight_bits).
    """

    def __init__(self, data: DataFile, bits: int) -> None:
        self._data = data
        self._bits = bits
        self._scales: dict[str, NDArray[np.float32]] = {}

    def matrix(self, name: str, graph: StaticGraph) -> list[onnx.TensorProto]:
        """Codes [n_out, n_in], scales [n_out] and zero points [n_out] of a matrix."""
        bits = matrix_bits(name, self._bits)
        kind = TensorProto.INT8 if bits == 8 else TensorProto.INT4
        codes_name, scales_name = f"{name}.codes", f"{name}.scales"
        codes, scales = self._data.find(codes_name), self._data.find(scales_name)
        if codes is None or scales is None:
            values, self._scales[name] = quantize_channels(graph.weights[name].read(), bits)
            codes = self._data.store(codes_name, kind, values.shape, values if bits == 8 else pack_nibbles(values))
            scales = self._data.store(scales_name, TensorProto.FLOAT, self._scales[name].shape, self._scales[name])
        n_out = codes.dims[0]
        zeros = np.zeros(n_out if bits == 8 else (n_out + 1) // 2, np.int8).tobytes()
        return [codes, scales, helper.make_tensor(f"zeros.int{bits}.{n_out}", kind, [n_out], zeros, raw=True)]

    def scales(self, name: str) -> NDArray[np.float32]:
        """Scales [n_out] of a matrix that was stored."""
        return self._scales[name]

    def constant(self, name: str, graph: StaticGraph, quantization: Quantization) -> onnx.TensorProto:
        """Codes of any other constant."""
        codes_name = f"{name}.codes.{quantization.type}"
        found = self._data.find(codes_name)
        if found is not None:
            return found
        values = graph.weights[name].read()
        codes = np.empty(values.shape, quantization.type)
        for start in range(0, len(values), 1024):  # some rows at a time, for memory's sake
            codes[start : start + 1024] = quantization.codes(values[start : start + 1024])
        return self._data.store(codes_name, helper.np_dtype_to_tensor_dtype(codes.dtype), codes.shape, codes)


class _Groups:
    """Sets of tensors that share one quantization: a forest of names, each pointing towards its set's first."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        while (above := self._parent.get(name, name)) != name:
            name = above
        return name

    def join(self, names: Iterable[str]) -> None:
        first, *others = (self.find(name) for name in names)
        self._parent |= {other: first for other in others if other != first}


class _Scales:
    """The quantization of every tensor of a graph but its matrices and biases."""

    def __init__(self, graph: StaticGraph, ranges: Ranges, options: QDQOptions, stream: frozenset[str]) -> None:
        self._graph, self._ranges, self._options, self._stream = graph, ranges, options, stream
        self._groups = _Groups()
        source = graph.model.graph
        for node in source.node:
            if node.op_type in _MOVES:
                self._groups.join([*list(node.input)[: _MOVES[node.op_type]], *node.output])
        self._kinds = {name: node.op_type for node in source.node for name in node.output}
        inputs = [info.name for info in source.input]
        self._masks = {self._groups.find(name) for name in inputs if name.endswith("attention_mask")}
        self._caches = {self._groups.find(name) for name in inputs if name.startswith("past_key_values.")}
        self._quantizations = {group: self._quantization(group, span) for group, span in self._spans().items()}

    def of(self, name: str) -> Quantization:
        return self._quantizations[self._groups.find(name)]

    def computed(self, node: onnx.NodeProto) -> str:
        """The tensor that a node gives: keys and values are computed in uint16 and then turned into the cache's type."""
        name: str = node.output[0]
        return f"{name}.computed" if node.op_type not in _MOVES and self._groups.find(name) in self._caches else name

    def _quantization(self, group: str, span: Range) -> Quantization:
        if group not in self._caches:
            return asymmetric(span, "uint16")
        return symmetric(span) if self._options.kv_type == "int16" else asymmetric(span, self._options.kv_type)

    def _spans(self) -> dict[str, Range]:
        """The range of each group: of all its members together."""
        spans: dict[str, Range] = {}
        depth = 0.0
        for name, span in self._members():
            group = self._groups.find(name)
            spans[group] = span.joined(spans.get(group, span))
        for node in filter(self._is_masking, self._graph.model.graph.node):
            masked = spans[self._groups.find(node.output[0])]
            depth = max(depth, masked.high - masked.low)
        return spans | dict.fromkeys(self._masks, Range(-depth, 0.0))

    def _members(self) -> Iterable[tuple[str, Range]]:
        """Constants with the range of their values, and what nodes give with its calibrated one; rows of constants are among these."""
        weights, nodes = self._graph.weights, self._graph.model.graph.node
        for name in {name for node in nodes for name in node.input[: 1 if node.op_type == "Gemm" else None] if name in weights}:
            values = weights[name].read()
            yield name, Range(float(values.min()), float(values.max()))
        for node in nodes:
            if node.output[0] not in self._stream and not (node.op_type == "Gather" and node.input[0] in weights):
                for name in {*node.output, self.computed(node)}:
                    yield name, self._span(node)

    def _span(self, node: onnx.NodeProto) -> Range:
        if node.op_type in _KNOWN_RANGES:
            return _KNOWN_RANGES[node.op_type]
        if self._is_masking(node):  # sums with the mask are held at the low end
            scores = self._calibrated(node.input[0])
            return Range(scores.low - _MASK_DEPTH, max(scores.high, 0.0))
        if node.op_type == "MatMul" and self._kinds.get(node.input[0]) == "Softmax":
            return self._calibrated(node.input[1])  # a mean of values lies among them; the first token's is one of them
        return self._calibrated(node.output[0])

    def _is_masking(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Add" and any(self._groups.find(name) in self._masks for name in node.input)

    def _calibrated(self, name: str) -> Range:
        found = self._ranges.get(name)
        if found is None or not np.isfinite([found.low, found.high]).all():
            raise InvalidRequestError(f"the tensor {name} has no finite range ({found}); calibrate a graph of the same model and form")
        return found.widened(self._options.headroom)


@dataclass
class _Quantizer:
    """Writes the quantized graph, node by node."""

    graph: StaticGraph
    weights: QuantizedWeights
    scales: _Scales
    stream: frozenset[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    real: dict[str, str] = field(default_factory=dict)  # name of a tensor -> name of its real values
    whole: set[str] = field(default_factory=set)  # names of tensors that are whole numbers by nature

    def run(self) -> QuantizedGraph:
        source = self.graph.model.graph
        floats = [info.name for info in source.input if info.type.tensor_type.elem_type == TensorProto.FLOAT]
        self.whole |= {info.name for info in source.input} - set(floats) | {tensor.name for tensor in source.initializer}
        for name in floats:
            self.real[name] = self.dequantize(name, self.scales.of(name))
        for node in source.node:
            self.add(node)
        borders = {name: self.scales.of(name) for name in (*floats, *(info.name for info in source.output))}
        return QuantizedGraph(self.model(borders), borders)

    def add(self, node: onnx.NodeProto) -> None:
        """The node on real values, and its outputs through codes."""
        inputs = [self.operand(node, position) for position in range(len(node.input))]
        (name,) = node.output
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.append(f"{name}.exact")
        self.nodes.append(copy)
        if name in self.stream:
            self.real[name] = f"{name}.exact"
            return
        computed = self.scales.computed(node)
        self.real[name] = self.rounded(f"{name}.exact", computed, self.scales.of(computed))
        if computed != name:
            self.real[name] = self.rounded(self.real[name], name, self.scales.of(name))

    def operand(self, node: onnx.NodeProto, position: int) -> str:
        """What a node reads at one of its inputs."""
        name: str = node.input[position]
        if name in self.whole:
            return name
        if node.op_type == "Gemm" and position == 1:
            return self.matrix(name)
        if node.op_type == "Gemm" and position == 2:
            return self.bias(node)
        if name in self.graph.weights:
            return self.float_constant(name) if self.stream & {*node.input, *node.output} else self.constant(name)
        if node.op_type == "MatMul" and position == 0 and self.scales.of(node.input[1]).type == "int16":
            return self.rounded(self.real[name], f"{name}.int16", symmetric(self.scales.of(name).range))
        return self.real[name]

    def rounded(self, real: str, codes: str, quantization: Quantization) -> str:
        """Real values through codes of the given name."""
        self.nodes.append(
            helper.make_node("QuantizeLinear", [real, *self.parameters(codes, quantization)], [codes], name=f"{codes}:quantize")
        )
        return self.dequantize(codes, quantization)

    def dequantize(self, codes: str, quantization: Quantization) -> str:
        inputs = [codes, *self.parameters(codes, quantization)]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{codes}.real"], name=f"{codes}:dequantize"))
        return f"{codes}.real"

    def parameters(self, codes: str, quantization: Quantization) -> list[str]:
        scale = np.array(quantization.scale, np.float32)
        zero_point = np.array(quantization.zero_point, quantization.type)
        names = [f"{codes}:scale", f"{codes}:zero_point"]
        self.constants |= {name: numpy_helper.from_array(value, name) for name, value in zip(names, (scale, zero_point), strict=True)}
        return names

    # --- constants ---

    def matrix(self, name: str) -> str:
        parts = self.weights.matrix(name, self.graph)
        self.constants |= {part.name: part for part in parts}
        names = [part.name for part in parts]
        self.nodes.append(helper.make_node("DequantizeLinear", names, [f"{name}.matrix"], name=f"{name}:matrix", axis=0))
        return f"{name}.matrix"

    def bias(self, node: onnx.NodeProto) -> str:
        """int32 codes [n_out] in units of the input's scale times the matrix's."""
        x, matrix, name = node.input
        scales = self.scales.of(x).scale * self.weights.scales(matrix)
        values = self.graph.weights[name].read()
        codes = np.clip(np.rint(values / scales.astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)
        names = [f"{name}.codes", f"{name}.scales", f"{name}.zeros"]
        arrays = (codes, scales.astype(np.float32), np.zeros_like(codes))
        self.constants |= {part: numpy_helper.from_array(values, part) for part, values in zip(names, arrays, strict=True)}
        self.nodes.append(helper.make_node("DequantizeLinear", names, [f"{name}.real"], name=f"{name}:bias", axis=0))
        return f"{name}.real"

    def constant(self, name: str) -> str:
        if name not in self.real:
            codes = self.weights.constant(name, self.graph, self.scales.of(name))
            self.constants[codes.name] = codes
            self.real[name] = self.dequantize(codes.name, self.scales.of(name))
        return self.real[name]

    def float_constant(self, name: str) -> str:
        self.constants[name] = numpy_helper.from_array(self.graph.weights[name].read(), name)
        return name

    # --- the whole ---

    def model(self, borders: Mapping[str, Quantization]) -> onnx.ModelProto:
        source = self.graph.model.graph
        used = {name for node in source.node for name in node.input}
        indices = [tensor for tensor in source.initializer if tensor.name in used]
        inputs, outputs = ([self.border(info, borders) for info in infos] for infos in (source.input, source.output))
        graph = helper.make_graph(self.nodes, source.name, inputs, outputs, [*indices, *self.constants.values()])
        model = helper.make_model(graph, opset_imports=self.graph.model.opset_import, producer_name=self.graph.model.producer_name)
        model.ir_version = self.graph.model.ir_version
        return model

    @staticmethod
    def border(info: onnx.ValueInfoProto, borders: Mapping[str, Quantization]) -> onnx.ValueInfoProto:
        if info.name not in borders:
            return info
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        return helper.make_tensor_value_info(info.name, helper.np_dtype_to_tensor_dtype(np.dtype(borders[info.name].type)), shape)
