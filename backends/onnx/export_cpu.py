"""The graph for ONNX Runtime on a CPU: fused nodes, any number of tokens, keys and values handed in and out.

    inputs    input_ids int64 [batch, n_tokens], attention_mask int64 [batch, n_total],
              past_key_values.{layer}.key and .value [batch, n_kv_heads, n_past, head_dim],
              logit_rows int64 [n_rows]: which of n_tokens give outputs; the last, [-1], unless given
    outputs   logits float32 [batch, n_rows, n_vocab], hidden_states float32 [batch, n_rows, n_embd] after the final norm,
              present.{layer}.key and .value [batch, n_kv_heads, n_total or the past buffer's length, head_dim]

The graph declares one row of logits, which is what there is by default; where more are asked for, ONNX Runtime logs a warning.
A row of the mask is ones for the tokens that its sequence has after this call, then zeros; nothing else is read from it. Where past
and present are one buffer, attention writes the new keys and values in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.config import ModelConfig, read_config
from edgelm.backends.onnx.export import ExportOptions, ExportReport, StoredFormat
from edgelm.backends.onnx.genai_config import genai_config, write_genai_config
from edgelm.backends.onnx.graph import FLOAT, FLOAT16, INT32, INT64, GraphWriter
from edgelm.backends.onnx.matrix_writer import FLOAT32, MatrixWriter
from edgelm.backends.rope import rope_tables
from edgelm.backends.weights import LayerTensors, Linear, ModelTensors, read_tensors
from edgelm.errors import UnsupportedModelError
from edgelm.quant.exported_folder import GraphFile, Manifest
from edgelm.quant.model_file import ModelFile, Tensor

GRAPH = "model"
_KV_TYPES = {"f32": FLOAT, "f16": FLOAT16}
_KV_DTYPES = {"f32": np.float32, "f16": np.float16}


def export_cpu(file: ModelFile, folder: Path, options: ExportOptions, progress: Callable[[str], None]) -> ExportReport:
    """Write model.onnx, its data and what onnxruntime-genai asks for into the folder; manifest and metadata are the caller's.

    Raises:
        ModelFileError, UnsupportedModelError: as read_config and read_tensors, and heads of a size that the fused attention does not take.
    """
    config = read_config(file.metadata)
    tensors = read_tensors(file, config)
    with GraphWriter(folder, GRAPH) as graph:
        matrices = MatrixWriter(graph, options.precision, options.requantize)
        n_ctx = options.context(config)
        progress(f"writing {config.n_layers} layers")
        _Decoder(graph, matrices, config, tensors, n_ctx, options.kv_type).write(file.drop_pages)
        path = graph.save()
    write_genai_config(folder, genai_config(config, file.metadata, tensors.n_vocab, n_ctx, path.name))
    manifest = Manifest("cpu", n_ctx, options.precision, options.kv_type, (GraphFile(path.name),))
    return ExportReport(folder, manifest, matrices.report, _notes(matrices.report, options))


def _notes(formats: Sequence[StoredFormat], options: ExportOptions) -> tuple[str, ...]:
    wide = [entry.format for entry in formats if entry.stored == FLOAT32]
    if not wide or options.precision == "f32":
        return ()
    return (f"matrices in {', '.join(wide)} are held as float32, which is exact; --requantize q8_0 or q4_0 would make them smaller",)


class _Decoder:
    """Adds the nodes of the forward pass to a graph. x is float32 [batch, n_tokens, n_embd] throughout."""

    def __init__(
        self, graph: GraphWriter, matrices: MatrixWriter, config: ModelConfig, tensors: ModelTensors, n_ctx: int, kv_type: str
    ) -> None:
        if config.head_dim % 8:
            raise UnsupportedModelError(
                f"heads of {config.head_dim} channels: ONNX Runtime's fused attention needs a multiple of 8; "
                "choose another backend for this model"
            )
        self._graph, self._matrices = graph, matrices
        self._c, self._t = config, tensors
        self._n_ctx, self._kv_type = n_ctx, kv_type
        # The fused rotation takes heads, and numbers of rotated channels, in multiples of 16.
        self._rotates_inside = config.head_dim % 16 == 0 and config.rope.n_dims % 16 == 0

    def write(self, after_layer: Callable[[], None]) -> None:
        graph, c, t = self._graph, self._c, self._t
        ids = graph.input("input_ids", INT64, ("batch", "n_tokens"))
        mask = graph.input("attention_mask", INT64, ("batch", "n_total"))
        rows = graph.default_input("logit_rows", ("n_rows",), np.array([-1], np.int64))
        self._lengths, self._total = self._sequence_lengths(mask)
        self._positions = "" if self._rotates_inside or not any(c.rope_layers) else self._token_positions(ids)
        self._tables: dict[bool, tuple[str, str]] = {}
        x, added = self._scaled(self._matrices.lookup(t.embedding, ids), c.embedding_scale), ""
        for index, layer in enumerate(t.layers):
            normed, x = self._add_and_norm(x, added, layer.attn_norm)
            added = self._added(self._attention(index, layer, normed), layer.post_attn_norm)
            normed, x = self._add_and_norm(x, added, layer.ffn_norm)
            added = self._added(self._feed_forward(layer, normed), layer.post_ffn_norm)
            after_layer()
        x = graph.op("Gather", graph.op("Add", x, added), rows, axis=1)
        hidden = self._norm(x, t.output_norm, name="hidden_states")
        graph.output(hidden, FLOAT, ("batch", "n_rows", c.n_embd))
        self._logits(hidden)

    def _logits(self, hidden: str) -> None:
        graph, c = self._graph, self._c
        x = self._scaled(hidden, c.logit_scale)
        name = "logits"
        if c.logit_softcap:
            cap = graph.constant(np.array(c.logit_softcap, np.float32))
            graph.op("Mul", graph.op("Tanh", graph.op("Div", self._matrices.linear(x, self._t.output), cap)), cap, name=name)
        else:
            self._matrices.linear(x, self._t.output, name=name)
        # onnxruntime-genai takes the logits of the last token alone only where the graph says that there is one row.
        graph.output(name, FLOAT, ("batch", 1, self._t.n_vocab))

    # -- small parts ---------------------------------------------------------------------------------------------------------------

    def _float_constant(self, values: NDArray[np.float32]) -> str:
        return self._graph.constant(np.asarray(values, np.float32))

    def _scaled(self, x: str, factor: float) -> str:
        return x if factor == 1.0 else self._graph.op("Mul", x, self._float_constant(np.array(factor)))

    def _norm(self, x: str, weight: Tensor, name: str | None = None) -> str:
        attributes = {"axis": -1, "epsilon": self._c.norm_eps, "stash_type": 1}
        return self._graph.op("SimplifiedLayerNormalization", x, self._float_constant(weight.dequantize()), name=name, **attributes)

    def _add_and_norm(self, x: str, added: str, weight: Tensor) -> tuple[str, str]:
        """norm(x + added) and x + added; added may be "" for nothing."""
        if not added:
            return self._norm(x, weight), x
        gamma = self._float_constant(weight.dequantize())
        kind = "SkipSimplifiedLayerNormalization"
        normed, _mean, _deviation, total = self._graph.ops(kind, added, x, gamma, outputs="1001", epsilon=self._c.norm_eps)
        return normed, total

    def _products(self, x: str, *linears: Linear) -> list[str]:
        """Linear layers of one input; a single product where their weights can lie in one matrix, which is a few percent faster."""
        if not self._matrices.can_join(linears):
            return [self._matrices.linear(x, layer) for layer in linears]
        sizes = self._graph.constant(np.array([layer.n_out for layer in linears]))
        return self._graph.ops("Split", self._matrices.linear(x, *linears), sizes, outputs="1" * len(linears), axis=-1)

    def _added(self, x: str, post_norm: Tensor | None) -> str:
        """What a half of a block adds to the stream."""
        return self._scaled(x if post_norm is None else self._norm(x, post_norm), self._c.residual_scale)

    # -- feed-forward --------------------------------------------------------------------------------------------------------------

    def _feed_forward(self, layer: LayerTensors, x: str) -> str:
        gate, up = self._products(x, layer.gate, layer.up)
        if self._c.row.activation == "silu":
            active = self._graph.op("QuickGelu", gate, alpha=1.0)  # x sigmoid(alpha x)
        else:
            active = self._graph.op("Gelu", gate, approximate="tanh")
        return self._matrices.linear(self._graph.op("Mul", active, up), layer.down)

    # -- attention -----------------------------------------------------------------------------------------------------------------

    def _attention(self, index: int, layer: LayerTensors, x: str) -> str:
        graph, c = self._graph, self._c
        rotates = c.has_rope(index)
        cos, sin = self._rotary_tables(c.is_local(index)) if rotates else ("", "")
        query, key, value = self._queries_keys_values(layer, x)
        if rotates and not self._rotates_inside:
            query, key = self._rotated(query, c.n_heads, cos, sin), self._rotated(key, c.n_kv_heads, cos, sin)
            cos = sin = ""
        query, key, value = (self._to_kv_type(part) for part in (query, key, value))
        dims = ("batch", c.n_kv_heads, "n_past", c.head_dim)
        element_type = _KV_TYPES[self._kv_type]
        past = [graph.input(f"past_key_values.{index}.{part}", element_type, dims) for part in ("key", "value")]
        present = [f"present.{index}.{part}" for part in ("key", "value")]
        mixed = graph.new_name("attention")
        inputs = [query, key, value, *past, self._lengths, self._total, *((cos, sin) if cos else ())]
        graph.node("GroupQueryAttention", inputs, [mixed, *present], **self._attention_attributes(index, bool(cos)))
        for name in present:
            graph.output(name, element_type, ("batch", c.n_kv_heads, "n_present", c.head_dim))
        return self._matrices.linear(self._from_kv_type(mixed), layer.o)

    def _attention_attributes(self, index: int, rotates: bool) -> dict[str, float]:
        c = self._c
        attributes: dict[str, float] = {"num_heads": c.n_heads, "kv_num_heads": c.n_kv_heads, "scale": c.attention_scale}
        if rotates:
            attributes |= {"do_rotary": 1, "rotary_interleaved": int(c.row.rope == "adjacent")}
        if c.is_local(index):
            attributes["local_window_size"] = c.sliding_window
        if c.attention_softcap:
            attributes["softcap"] = c.attention_softcap
        return attributes

    def _queries_keys_values(self, layer: LayerTensors, x: str) -> tuple[str, str, str]:
        """q [batch, n_tokens, n_heads * head_dim], k, v; or all three in one value, and "" twice, where nothing is done to them outside."""
        parts = (layer.q, layer.k, layer.v)
        if layer.q_norm is None and layer.k_norm is None and self._rotates_inside and self._matrices.can_join(parts):
            return self._matrices.linear(x, *parts), "", ""
        query, key, value = self._products(x, *parts)
        return self._head_norm(query, layer.q_norm, self._c.n_heads), self._head_norm(key, layer.k_norm, self._c.n_kv_heads), value

    def _head_norm(self, x: str, weight: Tensor | None, n_heads: int) -> str:
        """RMSNorm of each head of x [batch, n_tokens, n_heads * head_dim]."""
        if weight is None:
            return x
        graph, head = self._graph, self._c.head_dim
        heads = graph.op("Reshape", x, graph.constant(np.array([0, 0, n_heads, head])))
        return graph.op("Reshape", self._norm(heads, weight), graph.constant(np.array([0, 0, n_heads * head])))

    def _rotated(self, x: str, n_heads: int, cos: str, sin: str) -> str:
        """Rotary embedding of x [batch, n_tokens, n_heads * head_dim]."""
        n_dims, head = self._c.rope.n_dims, self._c.head_dim
        attributes: dict[str, Any] = {"interleaved": int(self._c.row.rope == "adjacent"), "num_heads": n_heads}
        if n_dims < head:
            attributes["rotary_embedding_dim"] = n_dims
        return self._graph.op("RotaryEmbedding", x, self._positions, cos, sin, **attributes)

    def _rotary_tables(self, local: bool) -> tuple[str, str]:
        """Cosines and sines [n_ctx, n_dims / 2] of the global or of the sliding-window layers."""
        if local not in self._tables:
            c = self._c
            rope = c.local_rope if local else c.rope
            factors = None if local and c.row.local_freq_base else self._t.rope_factors(rope, self._n_ctx)
            dtype = _KV_DTYPES[self._kv_type] if self._rotates_inside else np.float32
            cos, sin = (self._graph.constant(table.astype(dtype)) for table in rope_tables(rope, self._n_ctx, factors))
            self._tables[local] = cos, sin
        return self._tables[local]

    def _to_kv_type(self, x: str) -> str:
        return x if not x or self._kv_type == "f32" else self._graph.op("Cast", x, to=_KV_TYPES[self._kv_type])

    def _from_kv_type(self, x: str) -> str:
        return x if self._kv_type == "f32" else self._graph.op("Cast", x, to=FLOAT)

    # -- lengths and positions -----------------------------------------------------------------------------------------------------

    def _sequence_lengths(self, mask: str) -> tuple[str, str]:
        """What attention asks for: int32 [batch], each sequence's length less one; and int32 [], n_total."""
        graph = self._graph
        lengths = graph.op("ReduceSum", mask, graph.constant(np.array([1])), keepdims=0)
        total = graph.op("Gather", graph.op("Shape", mask), graph.constant(np.array(1)), axis=0)
        less_one = graph.op("Sub", lengths, graph.constant(np.array(1)))
        return graph.op("Cast", less_one, to=INT32), graph.op("Cast", total, to=INT32)

    def _token_positions(self, ids: str) -> str:
        """Position of every token, int64 [batch, n_tokens]: the tokens end where the sequence ends, but none starts before 0."""
        graph = self._graph
        n_tokens = graph.op("Gather", graph.op("Shape", ids), graph.constant(np.array(1)), axis=0)
        one, zero = graph.constant(np.array(1)), graph.constant(np.array(0))
        lengths = graph.op("Add", graph.op("Cast", self._lengths, to=INT64), one)
        first = graph.op("Max", graph.op("Sub", lengths, n_tokens), zero)
        steps = graph.op("Range", zero, n_tokens, one)
        return graph.op("Add", graph.op("Unsqueeze", first, graph.constant(np.array([1]))), steps)
