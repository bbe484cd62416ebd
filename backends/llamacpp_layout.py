"""What a GGUF file says of the memory a model takes in llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelFileError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.model_file import ModelFile


@dataclass(frozen=True)
class Layout:
    """Sizes that decide how much memory a model takes.

    Attributes:
        n_kv_heads: of each layer, int64 [n_layers].
        key_size, value_size: channels of one head.
    """

    architecture: str
    n_layers: int
    n_ctx_train: int
    n_kv_heads: NDArray[np.int64]
    key_size: int
    value_size: int

    def kv_bytes(self, key: BlockFormat, value: BlockFormat) -> int:
        """Bytes of one token in the KV cache."""
        return sum(key.nbytes((int(n) * self.key_size,)) + value.nbytes((int(n) * self.value_size,)) for n in self.n_kv_heads)


def read_layout(file: ModelFile) -> Layout:
    architecture = file.metadata.get("general.architecture", "")

    def sizes(key: str, default: object = None) -> NDArray[np.int64]:
        value = file.metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise ModelFileError(f"{file.path} lacks the key {architecture}.{key}; fetch the file again")
        return np.asarray(value, np.int64)

    n_layers = int(sizes("block_count"))
    n_heads = sizes("attention.head_count")
    head = int(sizes("embedding_length")) // max(1, int(n_heads.max()))
    n_kv_heads = np.broadcast_to(sizes("attention.head_count_kv", n_heads), n_layers)
    key_size, value_size = (int(sizes(f"attention.{name}", head)) for name in ("key_length", "value_length"))
    return Layout(str(architecture), n_layers, int(sizes("context_length")), n_kv_heads, key_size, value_size)


def bytes_per_token(file: ModelFile) -> int:
    """Weight bytes that one token reads: one row of an embedding that is not the output layer too, and the experts it is sent to."""
    architecture = file.metadata["general.architecture"]
    n_experts = file.metadata.get(f"{architecture}.expert_count", 0) or 1
    used = file.metadata.get(f"{architecture}.expert_used_count", n_experts) / n_experts
    total = 0.0
    for name, tensor in file.tensors.items():
        if name == "token_embd.weight" and "output.weight" in file.tensors:
            total += tensor.data.nbytes / tensor.shape[0]
        else:
            total += tensor.data.nbytes * (used if "_exps." in name else 1.0)
    return int(total)


def rope_original_context(file: ModelFile, n_ctx: int) -> tuple[str, int] | None:
    """What to tell llama.cpp of a LongRoPE model's original context.

    It takes the long factors where the whole KV cache has more cells than that, but ours holds several sequences of n_ctx tokens.
    """
    if "rope_factors_long.weight" not in file.tensors:
        return None
    architecture = file.metadata["general.architecture"]
    key = f"{architecture}.rope.scaling.original_context_length"
    original = file.metadata.get(key, file.metadata[f"{architecture}.context_length"])
    return key, 1 if n_ctx > original else 1 << 30
