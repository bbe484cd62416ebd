"""Decoder graphs of plain float operators and fixed shapes, for processors that take nothing else (Qualcomm's NPU, NNAPI).

One graph reads n tokens of one sequence after at most n_ctx earlier ones:

    inputs   input_ids int32 [n], positions int32 [n],
             attention_mask float32 [1, 1, n, n_ctx + n], added to the scores; first the past, then the n tokens themselves,
             local_attention_mask likewise, where layers look through a sliding window,
             past_key_values.{layer}.key float32 [1, n_kv_heads, head_dim, n_ctx], .value [1, n_kv_heads, n_ctx, head_dim]
    outputs  logits float32 [n, n_vocab], hidden_states float32 [n, n_embd] (after the final norm),
             new_key_values.{layer}.key float32 [1, n_kv_heads, head_dim, n], .value [1, n_kv_heads, n, head_dim]

Keys are stored transposed, as the product with the queries reads them. Attention joins the past and the new keys and values; the host
writes the new ones into its cache afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgelm.backends.config import ModelConfig
from edgelm.backends.onnx.rotary_halves import halves_tables, paired_channels
from edgelm.backends.weights import LayerTensors, Linear, ModelTensors
from edgelm.quant.model_file import Tensor

Array = NDArray[np.float32]
Shape = tuple[int, ...]

_IR_VERSIONS = {18: 8, 21: 10, 23: 11}  # the oldest file version that may hold each operator set


@dataclass(frozen=True)
class Weight:
    """A float constant of the graph, read only when it is wanted.

    Attributes:
        shape: of the values.
        read: gives them, float32 [*shape].
    """

    shape: Shape
    read: Callable[[], Array]

    @property
    def n_bytes(self) -> int:
        return 4 * math.prod(self.shape)


@dataclass(frozen=True)
class StaticForm:
    """How the graph writes what can be written in several ways.

    Attributes:
        linear: "gemm" is Gemm with the weight as [n_out, n_in]; "matmul" is MatMul (and Add) with it as [n_in, n_out]; "conv" is a
            1x1 Conv with it as [n_out, n_in, 1, 1].
        norm: "plain" writes RMSNorm with Mul, ReduceMean, Add, Sqrt, Div, Mul; "operator" is RMSNormalization of operator set 23.
        opset: operator set of the graph: 18, 21 or 23.
        stream_scale: the residual stream is held times this, for float16 has no number above 65504; a power of two changes no result.
    """

    linear: Literal["gemm", "matmul", "conv"] = "gemm"
    norm: Literal["plain", "operator"] = "plain"
    opset: int = 18
    stream_scale: float = 1.0


@dataclass(frozen=True)
class StaticGraph:
    """A graph and its weights.

    Attributes:
        model: the graph; its float constants are not among the initializers.
        weights: the float constants, by name ("layers.3.attention.q.weight", "layers.3.attention.norm.weight", ...).
    """

    model: onnx.ModelProto
    weights: Mapping[str, Weight]

    def with_weights(self) -> onnx.ModelProto:
        """The whole model, weights among its initializers."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        model.graph.initializer.extend(numpy_helper.from_array(weight.read(), name) for name, weight in self.weights.items())
        return model


def static_graph(tensors: ModelTensors, config: ModelConfig, n_tokens: int, n_ctx: int, form: StaticForm | None = None) -> StaticGraph:
    """The graph that reads n_tokens tokens after at most n_ctx earlier ones.

    The weights read `tensors` when they are asked for, so the model's file must stay open until then.
    """
    return _Decoder(tensors, config, n_tokens, n_ctx, form or StaticForm()).graph()


@dataclass
class _Decoder:
    """Collects nodes. Every method that adds one gives the name of its output, which is also the node's."""

    tensors: ModelTensors
    config: ModelConfig
    n: int
    n_ctx: int
    form: StaticForm
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    integers: dict[str, onnx.TensorProto] = field(default_factory=dict)

    # --- the forward pass, as backends/reference.py tells it ---

    def graph(self) -> StaticGraph:
        c, t = self.config, self.tensors
        x = self.op("Gather", [self.tensor("embedding.weight", t.embedding), "input_ids"], "embedding")
        scale = c.embedding_scale * self.form.stream_scale
        if scale != 1.0:
            x = self.op("Mul", [x, self.scalar("embedding.scale", scale)], "embedding.scaled")
        masks = {name: self.grouped(name) for name in self.mask_names()}
        tables = {kind: self.rotary_rows(kind) for kind in self.rotary_kinds()}
        for index, layer in enumerate(t.layers):
            table = tables[self.rotary_kind(index)] if c.has_rope(index) else None
            x = self.block(f"layers.{index}", index, layer, x, table, masks[self.mask_name(index)])
        hidden = self.stream_norm("hidden_states", x, t.output_norm)
        self.logits(hidden)
        graph = helper.make_graph(self.nodes, "decoder", self.inputs(), self.outputs(), list(self.integers.values()))
        opset = self.form.opset
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="edgelm")
        model.ir_version = _IR_VERSIONS[opset]
        return StaticGraph(model, self.weights)

    def block(self, name: str, index: int, layer: LayerTensors, x: str, table: tuple[str, str] | None, mask: str) -> str:
        """h = x + attention(norm(x)); h + feed_forward(norm(h)). x and result [n, n_embd]."""
        added = self.attention(f"{name}.attention", index, layer, x, table, mask)
        h = self.op("Add", [x, added], f"{name}.attention.residual")
        added = self.feed_forward(f"{name}.feed_forward", layer, h)
        return self.op("Add", [h, added], f"{name}.feed_forward.residual")

    def attention(self, name: str, index: int, layer: LayerTensors, x: str, table: tuple[str, str] | None, mask: str) -> str:
        """Grouped-query attention; the heads of one group stand one below the other, so that keys and values need no repeating."""
        c, n, kv, d = self.config, self.n, self.config.n_kv_heads, self.config.head_dim
        order = None if table is None else paired_channels(c.rope, d, c.row.rope)
        x = self.stream_norm(f"{name}.norm", x, layer.attn_norm)
        # The scale of the scores goes into the last weight that the queries meet.
        q = self.heads(f"{name}.q", x, layer.q, layer.q_norm, c.n_heads, order, table, c.attention_scale)
        k = self.heads(f"{name}.k", x, layer.k, layer.k_norm, kv, order, table)
        v = self.heads(f"{name}.v", x, layer.v, None, kv)
        q = self.op("Transpose", [q], f"{name}.q.transposed", perm=[0, 2, 1, 3])
        # In two dimensions, and with a Reshape behind it: the optimizer of ONNX Runtime would push a Transpose out of the graph, past QDQ.
        k = self.reshape(k, f"{name}.k.rows", n, kv * d)
        k = self.op("Transpose", [k], f"{name}.k.columns", perm=[1, 0])
        k = self.reshape(k, f"new_key_values.{index}.key", 1, kv, d, n)
        v = self.op("Transpose", [v], f"new_key_values.{index}.value", perm=[0, 2, 1, 3])
        keys = self.op("Concat", [f"past_key_values.{index}.key", k], f"{name}.keys", axis=3)
        values = self.op("Concat", [f"past_key_values.{index}.value", v], f"{name}.values", axis=2)
        q = self.reshape(q, f"{name}.q.grouped", 1, kv, c.n_heads // kv * n, d)
        scores = self.op("MatMul", [q, keys], f"{name}.scores")
        if c.attention_softcap:
            scores = self.softcap(scores, f"{name}.scores", 1.0, c.attention_softcap)
        scores = self.op("Add", [scores, mask], f"{name}.scores.masked")
        probabilities = self.op("Softmax", [scores], f"{name}.probabilities", axis=3)
        mixed = self.op("MatMul", [probabilities, values], f"{name}.mixed")
        mixed = self.reshape(mixed, f"{name}.mixed.heads", 1, c.n_heads, n, d)
        mixed = self.op("Transpose", [mixed], f"{name}.mixed.tokens", perm=[0, 2, 1, 3])
        mixed = self.reshape(mixed, f"{name}.mixed.rows", n, c.n_heads * d)
        return self.added(f"{name}.output", mixed, layer.o, layer.post_attn_norm)

    def feed_forward(self, name: str, layer: LayerTensors, h: str) -> str:
        """down(act(gate(x)) * up(x)) of the normed stream."""
        x = self.stream_norm(f"{name}.norm", h, layer.ffn_norm)
        gate = self.linear(f"{name}.gate", x, layer.gate)
        gate = self.gelu(gate) if self.config.row.activation == "gelu" else self.silu(gate)
        up = self.linear(f"{name}.up", x, layer.up)
        product = self.op("Mul", [gate, up], f"{name}.product")
        return self.added(f"{name}.down", product, layer.down, layer.post_ffn_norm)

    def added(self, name: str, x: str, layer: Linear, norm: Tensor | None) -> str:
        """What is added to the stream; the scales of the residual stream go into the last weight."""
        scale = self.config.residual_scale * self.form.stream_scale
        if norm is None:
            return self.linear(name, x, layer, scale)
        return self.rms_norm(f"{name}.norm", self.linear(name, x, layer), norm, scale=scale)

    def heads(
        self,
        name: str,
        x: str,
        layer: Linear,
        norm: Tensor | None,
        n_heads: int,
        order: NDArray[np.intp] | None = None,
        table: tuple[str, str] | None = None,
        scale: float = 1.0,
    ) -> str:
        """[n, n_embd] -> [1, n, n_heads, d]: the linear layer, the norm of each head, the rotation."""
        d = self.config.head_dim
        rows = None if order is None else (np.arange(n_heads)[:, None] * d + order).reshape(-1)
        x = self.linear(name, x, layer, 1.0 if norm else scale, rows)
        x = self.reshape(x, f"{name}.heads", 1, self.n, n_heads, d)
        if norm is not None:
            x = self.rms_norm(f"{name}.norm", x, norm, order, scale)
        return x if table is None else self.rotate(name, x, table)

    def rotate(self, name: str, x: str, table: tuple[str, str]) -> str:
        """(a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of each head; the table of sines has the signs."""
        cos, sin = table
        half = self.config.head_dim // 2
        a, b = self.slice(x, f"{name}.first", 0, half), self.slice(x, f"{name}.second", half, 2 * half)
        swapped = self.op("Concat", [b, a], f"{name}.swapped", axis=3)
        straight = self.op("Mul", [x, cos], f"{name}.cos")
        crossed = self.op("Mul", [swapped, sin], f"{name}.sin")
        return self.op("Add", [straight, crossed], f"{name}.rotated")

    def logits(self, hidden: str) -> None:
        """logit_scale and softcap of the output layer."""
        c, output = self.config, self.tensors.output
        tied = output.weight is self.tensors.embedding
        plain = c.logit_scale == 1.0 and not c.logit_softcap
        x = self.linear("logits" if plain else "output", hidden, output, weight_name="embedding.weight" if tied else "output.weight")
        if c.logit_softcap:
            self.softcap(x, "output", c.logit_scale, c.logit_softcap, output="logits")
        elif not plain:
            self.op("Mul", [x, self.scalar("output.scale", c.logit_scale)], "logits")

    # --- parts of several operators ---

    def linear(
        self,
        name: str,
        x: str,
        layer: Linear,
        scale: float = 1.0,
        rows: NDArray[np.intp] | None = None,
        weight_name: str | None = None,
    ) -> str:
        """x W^T + b, both times `scale`, with the outputs in the order of `rows`; x [n, n_in], result [n, n_out]."""
        bias = [] if layer.bias is None else [self.tensor(f"{name}.bias", layer.bias, scale, rows)]
        weight_name = weight_name or f"{name}.weight"
        if self.form.linear == "gemm":
            return self.op("Gemm", [x, self.tensor(weight_name, layer.weight, scale, rows), *bias], name, transB=1)
        if self.form.linear == "conv":
            return self.convolution(name, x, layer, self.tensor(f"{weight_name}.conv", layer.weight, scale, rows, "conv"), bias)
        weight = self.tensor(f"{weight_name}.transposed", layer.weight, scale, rows, "transposed")
        product = self.op("MatMul", [x, weight], f"{name}.product" if bias else name)
        return self.op("Add", [product, *bias], name) if bias else product

    def convolution(self, name: str, x: str, layer: Linear, weight: str, bias: list[str]) -> str:
        """The linear layer as a convolution over an image of n pixels in one row, channels first."""
        image = self.reshape(x, f"{name}.image", 1, 1, self.n, layer.n_in)
        image = self.op("Transpose", [image], f"{name}.channels_first", perm=[0, 3, 1, 2])
        image = self.op("Conv", [image, weight, *bias], f"{name}.convolved", kernel_shape=[1, 1])
        image = self.op("Transpose", [image], f"{name}.channels_last", perm=[0, 2, 3, 1])
        return self.reshape(image, name, self.n, layer.n_out)

    def stream_norm(self, name: str, x: str, weight: Tensor) -> str:
        """The RMSNorm of the residual stream."""
        return self.rms_norm(name, x, weight, epsilon=self.config.norm_eps * self.form.stream_scale**2)

    def rms_norm(
        self,
        name: str,
        x: str,
        weight: Tensor,
        order: NDArray[np.intp] | None = None,
        scale: float = 1.0,
        epsilon: float | None = None,
    ) -> str:
        """x / sqrt(mean(x^2) + eps) * w * scale over the last axis; eps is the model's unless given."""
        w = self.tensor(f"{name}.weight", weight, scale, order)
        epsilon = epsilon or self.config.norm_eps
        if self.form.norm == "operator":
            return self.op("RMSNormalization", [x, w], name, axis=-1, epsilon=epsilon)
        squares = self.op("Mul", [x, x], f"{name}.squares")
        mean = self.op("ReduceMean", [squares, self.int64("last_axis", [-1])], f"{name}.mean", keepdims=1)
        mean = self.op("Add", [mean, self.scalar(f"norm.epsilon.{epsilon:.9g}", epsilon)], f"{name}.mean_eps")
        root = self.op("Sqrt", [mean], f"{name}.root")
        return self.op("Mul", [self.op("Div", [x, root], f"{name}.unit"), w], name)

    def silu(self, x: str) -> str:
        """x sigmoid(x)."""
        return self.op("Mul", [x, self.op("Sigmoid", [x], f"{x}.sigmoid")], f"{x}.silu")

    def gelu(self, x: str) -> str:
        """x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3): the tanh form, as 0.5 (1 + tanh(u)) = sigmoid(2 u)."""
        slope = 2.0 * math.sqrt(2.0 / math.pi)
        u = self.op("Mul", [x, x], f"{x}.square")
        u = self.op("Mul", [u, self.scalar("gelu.cubic", 0.044715 * slope)], f"{x}.cubic")
        u = self.op("Add", [u, self.scalar("gelu.slope", slope)], f"{x}.slope")
        u = self.op("Mul", [u, x], f"{x}.inner")
        return self.op("Mul", [x, self.op("Sigmoid", [u], f"{x}.sigmoid")], f"{x}.gelu")

    def softcap(self, x: str, name: str, scale: float, cap: float, output: str | None = None) -> str:
        """cap tanh(x scale / cap)."""
        x = self.op("Mul", [x, self.scalar(f"softcap.{scale / cap:.9g}", scale / cap)], f"{name}.over_cap")
        x = self.op("Tanh", [x], f"{name}.tanh")
        return self.op("Mul", [x, self.scalar(f"softcap.{cap:.9g}", cap)], output or f"{name}.capped")

    def grouped(self, mask: str) -> str:
        """The mask for all heads of a group, [1, 1, group * n, n_ctx + n]."""
        group = self.config.n_heads // self.config.n_kv_heads
        return mask if group == 1 else self.op("Concat", [mask] * group, f"{mask}.grouped", axis=2)

    def rotary_rows(self, kind: str) -> tuple[str, str]:
        """The rows of the tables of cosines and sines that the positions call for, [1, n, 1, head_dim] each."""
        d, n_ctx = self.config.head_dim, self.n_ctx
        rope = self.config.local_rope if kind == "local_" else self.config.rope
        factors = None if kind == "local_" else self.tensors.rope_factors(rope, n_ctx)
        tables = halves_tables(rope, d, n_ctx, factors)
        cos, sin = (self.table_rows(f"{kind}{name}", table) for name, table in zip(("cos", "sin"), tables, strict=True))
        return cos, sin

    def table_rows(self, name: str, table: Array) -> str:
        rows = self.op("Gather", [self.array(f"{name}.table", table), "positions"], f"{name}.rows")
        return self.reshape(rows, name, 1, self.n, 1, self.config.head_dim)

    # --- which layer uses what ---

    def rotary_kind(self, layer: int) -> str:
        """ "local_" where the layer has a rotation of its own kind, else ""."""
        return "local_" if self.config.is_local(layer) and self.config.row.local_freq_base else ""

    def rotary_kinds(self) -> list[str]:
        return sorted({self.rotary_kind(layer) for layer in range(self.config.n_layers) if self.config.has_rope(layer)})

    def mask_name(self, layer: int) -> str:
        return "local_attention_mask" if self.config.is_local(layer) else "attention_mask"

    def mask_names(self) -> list[str]:
        return sorted({self.mask_name(layer) for layer in range(self.config.n_layers)})

    # --- inputs and outputs ---

    def inputs(self) -> list[onnx.ValueInfoProto]:
        c, n, n_ctx = self.config, self.n, self.n_ctx
        integers = [("input_ids", TensorProto.INT32, (n,))]
        if self.rotary_kinds():
            integers.append(("positions", TensorProto.INT32, (n,)))
        floats: list[tuple[str, Shape]] = [(name, (1, 1, n, n_ctx + n)) for name in self.mask_names()]
        for layer in range(c.n_layers):
            floats.append((f"past_key_values.{layer}.key", (1, c.n_kv_heads, c.head_dim, n_ctx)))
            floats.append((f"past_key_values.{layer}.value", (1, c.n_kv_heads, n_ctx, c.head_dim)))
        return [helper.make_tensor_value_info(*integer) for integer in integers] + _float_infos(floats)

    def outputs(self) -> list[onnx.ValueInfoProto]:
        c, n = self.config, self.n
        floats: list[tuple[str, Shape]] = [("logits", (n, self.tensors.n_vocab)), ("hidden_states", (n, c.n_embd))]
        for layer in range(c.n_layers):
            floats.append((f"new_key_values.{layer}.key", (1, c.n_kv_heads, c.head_dim, n)))
            floats.append((f"new_key_values.{layer}.value", (1, c.n_kv_heads, n, c.head_dim)))
        return _float_infos(floats)

    # --- single operators and constants ---

    def op(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def reshape(self, x: str, output: str, *shape: int) -> str:
        return self.op("Reshape", [x, self.int64("shape." + "x".join(map(str, shape)), shape)], output)

    def slice(self, x: str, output: str, start: int, stop: int) -> str:
        """Channels start to stop of [1, n, n_heads, d]."""
        bounds = [self.int64(f"channel.{start}", [start]), self.int64(f"channel.{stop}", [stop]), self.int64("channel_axis", [3])]
        return self.op("Slice", [x, *bounds], output)

    def int64(self, name: str, values: Sequence[int]) -> str:
        self.integers.setdefault(name, numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def scalar(self, name: str, value: float) -> str:
        return self.array(name, np.array([value], np.float32))

    def array(self, name: str, values: Array) -> str:
        self.weights.setdefault(name, Weight(values.shape, lambda: values))
        return name

    def tensor(self, name: str, tensor: Tensor, scale: float = 1.0, rows: NDArray[np.intp] | None = None, layout: str = "rows") -> str:
        """A tensor of the model times `scale`, its rows reordered; "transposed" or as a "conv" kernel where asked for."""

        def read() -> Array:
            values = tensor.dequantize()
            values = values if rows is None else values[rows]
            values = values if scale == 1.0 else values * np.float32(scale)
            values = values.T if layout == "transposed" else values
            return np.ascontiguousarray(values[:, :, None, None] if layout == "conv" else values)

        shape = {"rows": tensor.shape, "transposed": tensor.shape[::-1], "conv": (*tensor.shape, 1, 1)}[layout]
        self.weights.setdefault(name, Weight(shape, read))
        return name


def _float_infos(tensors: Sequence[tuple[str, Shape]]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in tensors]
