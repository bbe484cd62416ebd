"""What one token costs, from the sizes of a model's tensors: weights multiplied, bytes read, context looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from edgelm.backends.config import ModelConfig, read_config
from edgelm.bench.record import TokenCost
from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.model_file import ModelFile

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class TensorSize:
    """A tensor without its data; shape with the slowest dimension first."""

    name: str
    shape: tuple[int, ...]
    format: BlockFormat

    @property
    def n_bytes(self) -> int:
        return self.format.nbytes(self.shape)


def read_token_cost(model: ModelFile) -> TokenCost | None:
    """Of a model's file or folder; None where its architecture is not one that edgelm knows.

    Raises:
        ModelFileError: the file contradicts itself.
    """
    try:
        if model.tensors:
            return token_cost(model.metadata, [TensorSize(tensor.name, tensor.shape, tensor.format) for tensor in model.tensors.values()])
        return _cost_of_graph(model.metadata)
    except UnsupportedModelError:
        return None


def token_cost(metadata: Mapping[str, Any], tensors: Iterable[TensorSize]) -> TokenCost:
    """Of tensors under GGUF's names.

    Raises:
        UnsupportedModelError: the architecture is not one that edgelm knows.
        ModelFileError: metadata or the embedding are missing, or make no sense.
    """
    config = read_config(metadata)
    sizes = {tensor.name: tensor for tensor in tensors}
    if EMBEDDING not in sizes:
        raise ModelFileError(f"tensor {EMBEDDING} is missing; the file is incomplete, fetch or convert it again")
    output = sizes.get(OUTPUT, sizes[EMBEDDING])
    looked_up = sizes[EMBEDDING] if OUTPUT in sizes else None
    read = [tensor for tensor in sizes.values() if tensor is not looked_up]
    row_bytes = looked_up.n_bytes // looked_up.shape[0] if looked_up else 0
    n_weights = sum(prod(tensor.shape) for tensor in read if len(tensor.shape) > 1)
    return _cost(config, n_weights, prod(output.shape), sum(tensor.n_bytes for tensor in read) + row_bytes)


def _cost_of_graph(metadata: Mapping[str, Any]) -> TokenCost | None:
    """Of a model whose weights are in a graph: the weights that its sizes call for; their bytes are the engine's to say."""
    config = read_config(metadata)
    n_vocab = len(metadata.get("tokenizer.ggml.tokens", ()))
    if not n_vocab:
        return None
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    layer = config.n_embd * (2 * q + 2 * kv + 3 * config.n_ff)
    output = n_vocab * config.n_embd
    return _cost(config, config.n_layers * layer + output, output, None)


def _cost(config: ModelConfig, n_weights: int, n_output_weights: int, weight_bytes: int | None) -> TokenCost:
    n_local = sum(config.local_layers)
    return TokenCost(
        n_weights=n_weights,
        n_output_weights=n_output_weights,
        weight_bytes=weight_bytes,
        n_layers=config.n_layers - n_local,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        n_window_layers=n_local,
        window=config.sliding_window if n_local else 0,
    )


def mean_context(cost: TokenCost, depth: int, n_tokens: int) -> float:
    """Tokens that a token looks at, its own included: the mean over n_tokens tokens after a context of `depth`, and over the layers.

    The i-th of them sees depth + i, or in layers with a window at most the window.
    """
    whole = depth + (n_tokens + 1) / 2
    n_below = min(max(cost.window - depth, 0), n_tokens)  # the first of them, which see less than the window
    windowed = (n_below * (depth + (n_below + 1) / 2) + (n_tokens - n_below) * cost.window) / n_tokens
    return (cost.n_layers * whole + cost.n_window_layers * windowed) / (cost.n_layers + cost.n_window_layers)


def attention_macs(cost: TokenCost, n_context: float) -> float:
    """Multiplications of one token that looks at n_context tokens: q k and the weighted sum of v, in every head of every layer."""
    return 2 * (cost.n_layers + cost.n_window_layers) * cost.n_heads * cost.head_dim * n_context
