"""The float32 forward pass over many windows of text, a step at a time: between two steps stands what enters some linear layers.

    begin    x = stream                    input = norm(x)              enters q, k, v
    attend   input = heads(q, k, v)                                     enters o
    project  x = x + norm(o(input))        input = norm(x)              enters gate, up
    gate     input = act(gate) * up                                     enters down
    finish   x = x + norm(down(input))

So a quantizer sees the input of every linear layer, and may replace the layer's weights before the next step uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.causal_attention import causal_attention
from edgelm.backends.config import read_config
from edgelm.backends.reference import Array, embedding, gated, rms_norm, rotate, softcap
from edgelm.backends.rope import rope_tables
from edgelm.backends.weights import LayerTensors, Linear, read_layer, read_tensors, tensor_rows
from edgelm.quant.blocks import F32
from edgelm.quant.model_file import ModelFile, Tensor
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.stepped_model import State, Step

_ROWS = 32  # of a window that the gate computes at a time: they stay in the cache
_ROWS_OF_LOGITS = 256  # that a thread computes at a time


class BlockSteps:
    """A model taken apart into steps; a SteppedModel.

    Args:
        file: the model; it must stay open.
        n_window: tokens in each window.
        threads: that share out the windows; None computes them one after the other.

    Raises:
        ModelFileError, UnsupportedModelError: as read_config and read_tensors.
    """

    def __init__(self, file: ModelFile, n_window: int, threads: RowThreads | None = None) -> None:
        self.config = c = read_config(file.metadata)
        self._file = file
        self._tensors = read_tensors(file, c, with_layers=False)
        factors = self._tensors.rope_factors(c.rope, n_window)
        self._tables = {
            False: rope_tables(c.rope, n_window, factors),
            True: rope_tables(c.local_rope, n_window, None if c.row.local_freq_base else factors),
        }
        self._sight = {False: n_window, True: c.sliding_window}
        self._threads = threads or RowThreads(1)

    @property
    def n_layers(self) -> int:
        return self.config.n_layers

    @property
    def n_vocab(self) -> int:
        return self._tensors.n_vocab

    def linear_groups(self, layer: int) -> tuple[tuple[str, ...], ...]:
        """Names of the weights that each step's input enters: of q, k, v; of o; of gate, up; of down. Fused ones come once."""
        parts = (("attn_q", "attn_k", "attn_v", "attn_qkv"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
        groups = [[f"blk.{layer}.{name}.weight" for name in names] for names in parts]
        return tuple(tuple(name for name in names if name in self._file.tensors) for names in groups)

    def embed(self, windows: NDArray[np.int32], replaced: Mapping[str, Tensor]) -> Array:
        """The stream before the first block, [n_windows, n, n_embd], of tokens [n_windows, n]."""
        weight = self._tensors.embedding
        rows = embedding(replaced.get(weight.name, weight), windows.reshape(-1)) * np.float32(self.config.embedding_scale)
        return rows.reshape(*windows.shape, -1)

    def end(self, stream: Array) -> State:
        """The state after the last step of the last block, with the output layer's inputs, of the stream after it."""
        return State(stream, self._norm(stream, self._tensors.output_norm))

    def begin(self, layer: int, stream: Array, replaced: Mapping[str, Tensor]) -> State:
        """The state before the first step of a block."""
        return State(stream, self._norm(stream, self._layer(layer, replaced).attn_norm))

    def steps(self, layer: int, replaced: Mapping[str, Tensor]) -> tuple[Step, ...]:
        """The four steps after `begin`: attend, project, gate, finish. The last one's input is that of the output layer.

        Args:
            replaced: tensors that stand in for the file's, by name; looked at when a step runs.
        """

        def attend(state: State) -> State:
            weights = self._layer(layer, replaced)
            q, k, v = (_dense(each) for each in (weights.q, weights.k, weights.v))
            inputs = np.empty((*state.inputs.shape[:2], self.config.n_heads * self.config.head_dim), np.float32)

            def one(window: int) -> None:
                x = state.inputs[window]
                inputs[window] = self._heads(layer, weights, q(x), k(x), v(x))

            self._each(one, len(inputs))
            return State(state.stream, inputs)

        def project(state: State) -> State:
            weights = self._layer(layer, replaced)
            return self._added(state, weights.o, weights.post_attn_norm, weights.ffn_norm)

        def gate(state: State) -> State:
            weights = self._layer(layer, replaced)
            gate, up = _dense(weights.gate), _dense(weights.up)
            inputs = np.empty((*state.inputs.shape[:2], self.config.n_ff), np.float32)

            def one(window: int) -> None:
                x, y = state.inputs[window], inputs[window]
                g, u = gate(x), up(x)
                for start in range(0, len(x), _ROWS):
                    rows = slice(start, start + _ROWS)
                    y[rows] = gated(self.config, g[rows], u[rows])

            self._each(one, len(inputs))
            return State(state.stream, inputs)

        def finish(state: State) -> State:
            weights = self._layer(layer, replaced)
            return self._added(state, weights.down, weights.post_ffn_norm, self._tensors.output_norm)

        return attend, project, gate, finish

    def logits(self, inputs: Array, tokens: slice, replaced: Mapping[str, Tensor]) -> Array:
        """Logits [..., n] of a range of n tokens of the vocabulary, from the output layer's inputs [..., n_embd]."""
        c, output = self.config, self._tensors.output
        first, last, _ = tokens.indices(self.n_vocab)
        weight = replaced.get(output.weight.name, output.weight)
        project = _dense(Linear(tensor_rows(weight, first, last)))
        bias = np.float32(0) if output.bias is None else output.bias.dequantize()[first:last]
        x = inputs.reshape(-1, inputs.shape[-1])
        logits = np.empty((len(x), last - first), np.float32)

        def some(rows: slice) -> None:
            logits[rows] = softcap((project(x[rows]) + bias) * np.float32(c.logit_scale), c.logit_softcap)

        self._threads.run(some, len(x), _ROWS_OF_LOGITS)
        return logits.reshape(*inputs.shape[:-1], -1)

    def _layer(self, layer: int, replaced: Mapping[str, Tensor]) -> LayerTensors:
        prefix = f"blk.{layer}."
        names = [name for name in self._file.tensors if name.startswith(prefix)]
        tensors = {name: replaced.get(name) or self._file.tensors[name] for name in names}
        return read_layer(tensors, self.config, layer)

    def _norm(self, x: Array, weight: Tensor | None) -> Array:
        return rms_norm(x, weight, self.config.norm_eps)

    def _added(self, state: State, layer: Linear, post_norm: Tensor | None, norm: Tensor) -> State:
        """stream + post_norm(layer(inputs)), and its norm."""
        project, scale = _dense(layer), np.float32(self.config.residual_scale)
        stream, inputs = np.empty_like(state.stream), np.empty_like(state.stream)

        def one(window: int) -> None:
            stream[window] = state.stream[window] + scale * self._norm(project(state.inputs[window]), post_norm)
            inputs[window] = self._norm(stream[window], norm)

        self._each(one, len(stream))
        return State(stream, inputs)

    def _heads(self, layer: int, weights: LayerTensors, q: Array, k: Array, v: Array) -> Array:
        """As reference.heads."""
        c, n = self.config, len(q)
        q, k, v = (x.reshape(n, -1, c.head_dim) for x in (q, k, v))
        q, k = self._norm(q, weights.q_norm), self._norm(k, weights.k_norm)
        if c.has_rope(layer):
            q, k = (rotate(x, self._tables[c.is_local(layer)], c.row.rope) for x in (q, k))
        return causal_attention(q, k, v, self._sight[c.is_local(layer)], c.attention_scale, c.attention_softcap)

    def _each(self, work: Callable[[int], None], n_windows: int) -> None:
        """Call work(window) for each of them."""

        def some(windows: slice) -> None:
            for window in range(windows.start, windows.stop):
                work(window)

        self._threads.run(some, n_windows, 1)


def _dense(layer: Linear) -> Callable[[Array], Array]:
    """The layer as x [n, n_in] to [n, n_out], its weights decoded once."""
    stored = layer.weight
    weight = stored.data.view(np.float32).reshape(stored.shape) if stored.format == F32 else stored.dequantize()
    bias = None if layer.bias is None else layer.bias.dequantize()

    def apply(x: Array) -> Array:
        y: Array = x @ weight.T
        if bias is not None:
            y += bias
        return y

    return apply
