"""The tensors of a model by their part in the forward pass, checked against the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.config import ModelConfig, Rope
from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.exported_folder import ExportedFolder
from edgelm.quant.model_file import ModelFile, Tensor


@dataclass(frozen=True)
class Linear:
    """y = W x + b, with W [n_out, n_in] and b [n_out] or None."""

    weight: Tensor
    bias: Tensor | None = None

    @property
    def n_out(self) -> int:
        return self.weight.shape[0]

    @property
    def n_in(self) -> int:
        return self.weight.shape[1]


@dataclass(frozen=True)
class LayerTensors:
    """One transformer block. With d = head_dim, Q = n_heads * d, K = n_kv_heads * d, weights are [n_out, n_in].

    Attributes:
        attn_norm, ffn_norm: RMSNorm weights [n_embd] before attention and before feed-forward.
        q, k, v: [Q, n_embd], [K, n_embd], [K, n_embd].
        q_norm, k_norm: RMSNorm weights [d] of each head before rotation, or None.
        o: [n_embd, Q].
        post_attn_norm, post_ffn_norm: RMSNorm weights [n_embd] of what is added to the stream, or None.
        gate, up, down: [n_ff, n_embd], [n_ff, n_embd], [n_embd, n_ff].
    """

    attn_norm: Tensor
    q: Linear
    k: Linear
    v: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    post_attn_norm: Tensor | None
    ffn_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear
    post_ffn_norm: Tensor | None


@dataclass(frozen=True)
class ModelTensors:
    """All tensors of a model.

    Attributes:
        embedding: [n_vocab, n_embd].
        layers: the blocks.
        output_norm: [n_embd].
        output: [n_vocab, n_embd]; its weight is `embedding` itself where the model ties them.
        rope_freqs: divisors of the rotary frequencies [rope.n_dims / 2] (Llama 3), or None.
        rope_long, rope_short: divisors beyond and within the original context (LongRoPE), or None.
    """

    embedding: Tensor
    layers: tuple[LayerTensors, ...]
    output_norm: Tensor
    output: Linear
    rope_freqs: Tensor | None = None
    rope_long: Tensor | None = None
    rope_short: Tensor | None = None

    @property
    def n_vocab(self) -> int:
        return self.embedding.shape[0]

    def rope_factors(self, rope: Rope, n_ctx: int) -> NDArray[np.float32] | None:
        """Divisors of the rotary frequencies, float32 [n_dims / 2] or None, for a context opened with n_ctx tokens."""
        factors = self.rope_freqs or (self.rope_long if n_ctx > rope.original_context else self.rope_short)
        return None if factors is None else factors.dequantize()


def tensor_rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Rows start to stop of a matrix, as a view: the rows of a tensor lie one after the other."""
    n_in = tensor.shape[-1]
    row = tensor.format.nbytes((n_in,))
    return replace(tensor, name=f"{tensor.name}[{start}:{stop}]", shape=(stop - start, n_in), data=tensor.data[start * row : stop * row])


class _Reader:
    """Takes tensors by name, checks their shapes, and remembers what was taken."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, *shape: int) -> Tensor:
        tensor = self.take_if_there(name, *shape)
        if tensor is None:
            raise ModelFileError(f"tensor {name} with shape {shape} is missing; the file is incomplete, fetch or convert it again")
        return tensor

    def take_if_there(self, name: str, *shape: int) -> Tensor | None:
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        if tensor.shape != shape:
            raise ModelFileError(
                f"tensor {name} has shape {tensor.shape}, but the metadata calls for {shape}; fetch or convert the file again"
            )
        self._taken.add(name)
        return tensor

    def vector(self, name: str, size: int) -> Tensor:
        return self.take(f"{name}.weight", size)

    def vector_if_there(self, name: str, size: int) -> Tensor | None:
        return self.take_if_there(f"{name}.weight", size)

    def linear(self, name: str, n_out: int, n_in: int) -> Linear:
        return Linear(self.take(f"{name}.weight", n_out, n_in), self.take_if_there(f"{name}.bias", n_out))

    def fused(self, name: str, n_in: int, *parts: int) -> tuple[Linear, ...]:
        """Several linear layers that the file stores as one matrix, `parts` rows each."""
        whole = self.linear(name, sum(parts), n_in)
        linears, start = [], 0
        for n_out in parts:
            stop = start + n_out
            bias = whole.bias
            if bias is not None:
                size = bias.format.nbytes((1,))
                bias = replace(bias, name=f"{bias.name}[{start}:{stop}]", shape=(n_out,), data=bias.data[start * size : stop * size])
            linears.append(Linear(tensor_rows(whole.weight, start, stop), bias))
            start = stop
        return tuple(linears)

    def check_all_taken(self) -> None:
        left = [name for name in self._tensors if name not in self._taken]
        if left:
            names = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
            raise UnsupportedModelError(
                f"the file has {len(left)} tensors that its architecture has no use for in edgelm ({names}); "
                "computing without them would give wrong answers"
            )


def read_tensors(file: ModelFile, config: ModelConfig, with_layers: bool = True) -> ModelTensors:
    """Find every tensor that the forward pass needs.

    Args:
        with_layers: False checks the layers too, but gives none, for those of some files are copies that memory might not hold at once.

    Raises:
        ModelFileError: a tensor is missing or has another shape than the metadata calls for.
        UnsupportedModelError: the file has tensors that this forward pass does not use, or is an export without tensors.
    """
    if isinstance(file, ExportedFolder):
        raise UnsupportedModelError(
            f"{file.path} is a model exported to ONNX; open it with the backend 'onnx', or open the model it was made from"
        )
    reader = _Reader(file.tensors)
    found = file.tensors.get("token_embd.weight")
    embedding = reader.take("token_embd.weight", found.shape[0] if found else 0, config.n_embd)
    n_vocab = embedding.shape[0]
    tied = not reader.has("output.weight")
    pairs = config.rope.n_dims // 2
    layers = (_read_layer(reader, config, f"blk.{layer}.") for layer in range(config.n_layers))
    tensors = ModelTensors(
        embedding=embedding,
        layers=tuple(layer for layer in layers if with_layers),
        output_norm=reader.vector("output_norm", config.n_embd),
        output=Linear(embedding, reader.take_if_there("output.bias", n_vocab)) if tied else reader.linear("output", n_vocab, config.n_embd),
        rope_freqs=reader.vector_if_there("rope_freqs", pairs),
        rope_long=reader.vector_if_there("rope_factors_long", pairs),
        rope_short=reader.vector_if_there("rope_factors_short", pairs),
    )
    reader.check_all_taken()
    return tensors


def read_layer(tensors: Mapping[str, Tensor], config: ModelConfig, layer: int) -> LayerTensors:
    """The tensors of one block.

    Raises:
        ModelFileError: as read_tensors.
    """
    return _read_layer(_Reader(tensors), config, f"blk.{layer}.")


def _read_layer(reader: _Reader, config: ModelConfig, prefix: str) -> LayerTensors:
    embd, ff, head = config.n_embd, config.n_ff, config.head_dim
    q_size, kv_size = config.n_heads * head, config.n_kv_heads * head
    if reader.has(f"{prefix}attn_qkv.weight"):
        q, k, v = reader.fused(f"{prefix}attn_qkv", embd, q_size, kv_size, kv_size)
    else:
        q = reader.linear(f"{prefix}attn_q", q_size, embd)
        k, v = (reader.linear(f"{prefix}{name}", kv_size, embd) for name in ("attn_k", "attn_v"))
    if config.architecture == "phi3" and not reader.has(f"{prefix}ffn_gate.weight"):
        gate, up = reader.fused(f"{prefix}ffn_up", embd, ff, ff)
    else:
        gate, up = (reader.linear(f"{prefix}{name}", ff, embd) for name in ("ffn_gate", "ffn_up"))
    return LayerTensors(
        attn_norm=reader.vector(f"{prefix}attn_norm", embd),
        q=q,
        k=k,
        v=v,
        q_norm=reader.vector_if_there(f"{prefix}attn_q_norm", head),
        k_norm=reader.vector_if_there(f"{prefix}attn_k_norm", head),
        o=reader.linear(f"{prefix}attn_output", embd, q_size),
        post_attn_norm=reader.vector_if_there(f"{prefix}post_attention_norm", embd),
        ffn_norm=reader.vector(f"{prefix}ffn_norm", embd),
        gate=gate,
        up=up,
        down=reader.linear(f"{prefix}ffn_down", embd, ff),
        post_ffn_norm=reader.vector_if_there(f"{prefix}post_ffw_norm", embd),
    )
