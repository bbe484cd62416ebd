"""The forward pass in plain numpy float32: slow, and easy to hold against the papers. It is the oracle of every engine."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.config import ModelConfig, read_config
from edgelm.backends.rope import rope_tables
from edgelm.backends.weights import LayerTensors, Linear, read_tensors
from edgelm.errors import InvalidRequestError
from edgelm.quant.model_file import ModelFile, Tensor

Array = NDArray[np.float32]
Tables = tuple[Array, Array]  # cos and sin, [n, n_dims / 2] each


class ReferenceModel:
    """A model whose weights are dequantized as they are needed.

    Args:
        file: the model; it must stay open.
        n_ctx: the context that an engine would be opened with; it matters only where the rotary factors depend on it (LongRoPE).

    Raises:
        ModelFileError, UnsupportedModelError: as read_config and read_tensors.
    """

    def __init__(self, file: ModelFile, n_ctx: int = 0) -> None:
        self.config = read_config(file.metadata)
        self.tensors = read_tensors(file, self.config)
        self._n_ctx = n_ctx

    def logits(self, tokens: NDArray[np.int32]) -> Array:
        """Logits after each token, float32 [n, n_vocab], of int32 tokens [n].

        Raises:
            InvalidRequestError: a token is not in the vocabulary.
        """
        c = self.config
        x = linear(self.tensors.output, self.hidden(tokens)) * c.logit_scale
        return softcap(x, c.logit_softcap)

    def hidden(self, tokens: NDArray[np.int32]) -> Array:
        """Final-norm hidden states, float32 [n, n_embd]."""
        c, n = self.config, len(tokens)
        factors = self.tensors.rope_factors(c.rope, max(self._n_ctx, n))
        tables = {False: rope_tables(c.rope, n, factors), True: rope_tables(c.local_rope, n, None if c.row.local_freq_base else factors)}
        masks = {False: causal_mask(n, n), True: causal_mask(n, c.sliding_window)}
        x = embedding(self.tensors.embedding, tokens) * c.embedding_scale
        for index, layer in enumerate(self.tensors.layers):
            local = c.is_local(index)
            x = block(c, layer, x, tables[local] if c.has_rope(index) else None, masks[local])
        return rms_norm(x, self.tensors.output_norm, c.norm_eps)


def block(c: ModelConfig, layer: LayerTensors, x: Array, tables: Tables | None, mask: Array) -> Array:
    """h = x + attention(norm(x)); h + feed_forward(norm(h)). x and result [n, n_embd]; optional norms stand before each sum."""
    scale = c.residual_scale
    added = attention(c, layer, rms_norm(x, layer.attn_norm, c.norm_eps), tables, mask)
    h = x + scale * rms_norm(added, layer.post_attn_norm, c.norm_eps)
    added = feed_forward(c, layer, rms_norm(h, layer.ffn_norm, c.norm_eps))
    y: Array = h + scale * rms_norm(added, layer.post_ffn_norm, c.norm_eps)
    return y


def attention(c: ModelConfig, layer: LayerTensors, x: Array, tables: Tables | None, mask: Array) -> Array:
    """o(heads(q(x), k(x), v(x))). x, result [n, n_embd]."""
    return linear(layer.o, heads(c, layer, linear(layer.q, x), linear(layer.k, x), linear(layer.v, x), tables, mask))


def heads(c: ModelConfig, layer: LayerTensors, q: Array, k: Array, v: Array, tables: Tables | None, mask: Array) -> Array:
    """softmax(q k^T scale + mask) v for each head; n_heads / n_kv_heads neighbouring heads share one k and v.

    q and result [n, n_heads * head_dim]; k, v [n, n_kv_heads * head_dim].
    """
    n, d = len(q), c.head_dim
    q, k, v = q.reshape(n, c.n_heads, d), k.reshape(n, c.n_kv_heads, d), v.reshape(n, c.n_kv_heads, d)
    q, k = rms_norm(q, layer.q_norm, c.norm_eps), rms_norm(k, layer.k_norm, c.norm_eps)
    if tables is not None:
        q, k = rotate(q, tables, c.row.rope), rotate(k, tables, c.row.rope)
    group = c.n_heads // c.n_kv_heads
    queries: Array = q.reshape(n, c.n_kv_heads, group, d).transpose(1, 2, 0, 3)  # [kv, group, n, d]
    keys: Array = k.transpose(1, 2, 0)[:, None]  # [kv, 1, d, n]
    values: Array = v.transpose(1, 0, 2)[:, None]  # [kv, 1, n, d]
    scores = softcap(queries @ keys * c.attention_scale, c.attention_softcap) + mask  # [kv, group, n, n]
    mixed = softmax(scores) @ values  # [kv, group, n, d]
    return mixed.transpose(2, 0, 1, 3).reshape(n, c.n_heads * d)


def feed_forward(c: ModelConfig, layer: LayerTensors, x: Array) -> Array:
    """down(act(gate(x)) * up(x)), the gated unit of Shazeer 2020 (arXiv 2002.05202). x, result [n, n_embd]."""
    return linear(layer.down, gated(c, linear(layer.gate, x), linear(layer.up, x)))


def gated(c: ModelConfig, gate: Array, up: Array) -> Array:
    """act(gate) * up; all [..., n_ff]."""
    activation = gelu if c.row.activation == "gelu" else silu
    return activation(gate) * up


def linear(layer: Linear, x: Array) -> Array:
    """x W^T + b; x [..., n_in], result [..., n_out]."""
    y: Array = x @ layer.weight.dequantize().T
    return y if layer.bias is None else y + layer.bias.dequantize()


def embedding(weight: Tensor, tokens: NDArray[np.int32]) -> Array:
    """Rows of the embedding, [n, n_embd]."""
    n_vocab, n_embd = weight.shape
    wrong = tokens[(tokens < 0) | (tokens >= n_vocab)]
    if len(wrong):
        raise InvalidRequestError(f"token {wrong[0]} is not in the vocabulary of {n_vocab} tokens")
    row = weight.format.nbytes((n_embd,))
    return weight.format.dequantize(weight.data.reshape(n_vocab, row)[tokens].reshape(-1)).reshape(len(tokens), n_embd)


def rms_norm(x: Array, weight: Tensor | None, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * w over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467); x itself where there is no w."""
    if weight is None:
        return x
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
    y: Array = x / np.sqrt(mean_square + eps) * weight.dequantize()
    return y


def rotate(x: Array, tables: Tables, pairs: str) -> Array:
    """(a, b) -> (a cos - b sin, a sin + b cos) for each pair of channels; x [n, n_heads, d], channels beyond n_dims stay as they are."""
    cos, sin = (table[:, None] for table in tables)  # [n, 1, n_dims / 2]
    half = cos.shape[-1]
    first, second = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if pairs == "adjacent" else (slice(0, half), slice(half, 2 * half))
    a, b = x[..., first], x[..., second]
    y = x.copy()
    y[..., first], y[..., second] = a * cos - b * sin, a * sin + b * cos
    return y


def causal_mask(n: int, window: int) -> Array:
    """0 where query i sees key j, minus infinity elsewhere, [n, n]: i - window < j <= i."""
    distance = np.arange(n)[:, None] - np.arange(n)[None]
    return np.where((distance >= 0) & (distance < window), 0.0, -np.inf).astype(np.float32)


def softmax(x: Array) -> Array:
    """exp(x - max) / sum over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    y: Array = e / e.sum(axis=-1, keepdims=True)
    return y


def softcap(x: Array, cap: float) -> Array:
    """cap tanh(x / cap); x itself where cap is 0."""
    y: Array = x if cap == 0.0 else cap * np.tanh(x / cap)
    return y


def silu(x: Array) -> Array:
    """x sigmoid(x), written with tanh so that nothing overflows."""
    y: Array = 0.5 * (x + x * np.tanh(0.5 * x))
    return y


def gelu(x: Array) -> Array:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), the tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    y: Array = 0.5 * (x + x * np.tanh(inner))
    return y
