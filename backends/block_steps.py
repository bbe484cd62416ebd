"""The float32 forward pass over many windows of text, a step at a time: between two steps stands what enters some linear layers.

    begin    x = stream                    input = norm(x)              enters q, k, v
    attend   input = heads(q, k, v)                                     enters o
    project  x = x + norm(o(input))        input = norm(x)              enters gate, up
    gate     input = act(gate) * up                                     enters down
    finish   x = x + norm(down(input))

So a quantizer sees the input of every linear layer, and may replace the layer's weights before the next step uses them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgelm.backends import reference
from edgelm.backends.config import read_config
from edgelm.backends.reference import Array, Tables, causal_mask, embedding, gated, linear, rms_norm, softcap
from edgelm.backends.rope import rope_tables
from edgelm.backends.weights import LayerTensors, Linear, read_layer, read_tensors, tensor_rows
from edgelm.quant.model_file import ModelFile, Tensor
from edgelm.quant.stepped_model import State, Step


class BlockSteps:
    """A model taken apart into steps; a SteppedModel.

    Args:
        file: the model; it must stay open.
        n_window: tokens in each window.

    Raises:
        ModelFileError, UnsupportedModelError: as read_config and read_tensors.
    """

    def __init__(self, file: ModelFile, n_window: int) -> None:
        self.config = c = read_config(file.metadata)
        self._file = file
        self._tensors = read_tensors(file, c)
        factors = self._tensors.rope_factors(c.rope, n_window)
        self._tables = {
            False: rope_tables(c.rope, n_window, factors),
            True: rope_tables(c.local_rope, n_window, None if c.row.local_freq_base else factors),
        }
        self._masks = {False: causal_mask(n_window, n_window), True: causal_mask(n_window, c.sliding_window)}

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
            q, k, v = (linear(each, state.inputs) for each in (weights.q, weights.k, weights.v))
            return State(state.stream, self._heads(layer, weights, q, k, v))

        def project(state: State) -> State:
            weights = self._layer(layer, replaced)
            stream = self._add(state.stream, linear(weights.o, state.inputs), weights.post_attn_norm)
            return State(stream, self._norm(stream, weights.ffn_norm))

        def gate(state: State) -> State:
            weights = self._layer(layer, replaced)
            return State(state.stream, gated(self.config, linear(weights.gate, state.inputs), linear(weights.up, state.inputs)))

        def finish(state: State) -> State:
            weights = self._layer(layer, replaced)
            return self.end(self._add(state.stream, linear(weights.down, state.inputs), weights.post_ffn_norm))

        return attend, project, gate, finish

    def logits(self, inputs: Array, tokens: slice, replaced: Mapping[str, Tensor]) -> Array:
        """Logits [..., n] of a range of n tokens of the vocabulary, from the output layer's inputs [..., n_embd]."""
        c, output = self.config, self._tensors.output
        first, last, _ = tokens.indices(self.n_vocab)
        weight = replaced.get(output.weight.name, output.weight)
        x = linear(Linear(tensor_rows(weight, first, last)), inputs)
        if output.bias is not None:
            x += output.bias.dequantize()[first:last]
        return softcap(x * np.float32(c.logit_scale), c.logit_softcap)

    def _layer(self, layer: int, replaced: Mapping[str, Tensor]) -> LayerTensors:
        prefix = f"blk.{layer}."
        names = [name for name in self._file.tensors if name.startswith(prefix)]
        tensors = {name: replaced.get(name) or self._file.tensors[name] for name in names}
        return read_layer(tensors, self.config, layer)

    def _norm(self, x: Array, weight: Tensor | None) -> Array:
        return rms_norm(x, weight, self.config.norm_eps)

    def _add(self, stream: Array, added: Array, norm: Tensor | None) -> Array:
        y: Array = stream + np.float32(self.config.residual_scale) * self._norm(added, norm)
        return y

    def _heads(self, layer: int, weights: LayerTensors, q: Array, k: Array, v: Array) -> Array:
        local = self.config.is_local(layer)
        tables: Tables | None = self._tables[local] if self.config.has_rope(layer) else None
        mask = self._masks[local]
        return np.stack([reference.heads(self.config, weights, *each, tables, mask) for each in zip(q, k, v, strict=True)])
