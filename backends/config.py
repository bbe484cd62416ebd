"""What a model's metadata says of its forward pass: one row per architecture, one frozen ModelConfig per model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgelm.errors import ModelFileError, UnsupportedModelError


@dataclass(frozen=True)
class Architecture:
    """What all models of one architecture share, beyond what their metadata says.

    Attributes:
        rope: "adjacent" rotates channels (2i, 2i+1), "halves" rotates channels (i, i + d/2).
        activation: of the gate in the feed-forward network.
        scale_embedding: multiply the embedding by sqrt(n_embd).
        local_pattern: layer l looks through the sliding window where l % local_pattern < local_pattern - 1; 0 for no window.
        no_rope_step: every step-th layer has no rotary embedding; 0 for none.
        local_freq_base: rotary base of the sliding-window layers where the metadata does not say; None for the same as global.
    """

    rope: Literal["adjacent", "halves"]
    activation: Literal["silu", "gelu"] = "silu"
    scale_embedding: bool = False
    local_pattern: int = 0
    no_rope_step: int = 0
    local_freq_base: float | None = None


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(rope="adjacent"),
    "smollm3": Architecture(rope="adjacent", no_rope_step=4),
    "granite": Architecture(rope="adjacent"),
    "qwen2": Architecture(rope="halves"),
    "qwen3": Architecture(rope="halves"),
    "phi3": Architecture(rope="halves"),
    "gemma2": Architecture(rope="halves", activation="gelu", scale_embedding=True, local_pattern=2),
    "gemma3": Architecture(rope="halves", activation="gelu", scale_embedding=True, local_pattern=6, local_freq_base=10000.0),
}


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one kind of layer.

    Attributes:
        n_dims: channels of each head that rotate.
        freq_base: theta in theta^(-2i / n_dims).
        position_scale: positions are multiplied by it (linear scaling: 1 / factor).
        yarn: (factor, original context, beta_fast, beta_slow) of YaRN scaling, or None.
        magnitude: cos and sin are multiplied by it.
    """

    n_dims: int
    freq_base: float
    position_scale: float = 1.0
    yarn: tuple[float, int, float, float] | None = None
    magnitude: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """Everything the forward pass needs besides the tensors. Optional tensors (biases, norms) speak for themselves."""

    architecture: str
    row: Architecture
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ctx_train: int
    norm_eps: float
    rope: Rope
    local_rope: Rope
    sliding_window: int
    embedding_scale: float
    residual_scale: float
    attention_scale: float
    logit_scale: float
    attention_softcap: float
    logit_softcap: float

    def is_local(self, layer: int) -> bool:
        """Whether the layer attends through the sliding window."""
        pattern = self.row.local_pattern
        return self.sliding_window > 0 and pattern > 0 and layer % pattern < pattern - 1

    def has_rope(self, layer: int) -> bool:
        step = self.row.no_rope_step
        return step == 0 or (layer + 1) % step != 0


def read_config(metadata: Mapping[str, Any]) -> ModelConfig:
    """Read and check the configuration of a model.

    Raises:
        UnsupportedModelError: the architecture is not one of ARCHITECTURES.
        ModelFileError: a key is missing or its value makes no sense.
    """
    architecture = metadata.get("general.architecture")
    row = ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None
    if row is None:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedModelError(f"architecture {architecture!r} (key general.architecture) is not supported; edgelm runs {known}")

    def get(key: str, kind: Callable[[Any], Any], default: Any = None) -> Any:
        full = f"{architecture}.{key}"
        value = metadata.get(full, default)
        if value is None:
            raise ModelFileError(f"the metadata key {full} is missing; the file is incomplete, fetch or convert it again")
        try:
            return kind(value)
        except (TypeError, ValueError):
            raise ModelFileError(f"the metadata key {full} has the value {value!r}, which is not {kind.__name__}") from None

    def positive(key: str, default: int | None = None) -> int:
        value: int = get(key, int, default)
        if not 0 < value < 2**31:
            raise ModelFileError(f"the metadata key {architecture}.{key} is {value}, which makes no sense")
        return value

    n_embd, n_heads = positive("embedding_length"), positive("attention.head_count")
    n_kv_heads = positive("attention.head_count_kv", n_heads)
    head_dim = positive("attention.key_length", n_embd // n_heads)
    if n_heads % n_kv_heads or head_dim % 2 or positive("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(
            f"{n_heads} heads of {head_dim} channels with {n_kv_heads} KV heads: edgelm needs an even head size, the same for keys and values, "
            "and a head count that is a multiple of the KV head count"
        )
    n_ctx_train = positive("context_length")
    n_dims = positive("rope.dimension_count", head_dim)
    freq_base = get("rope.freq_base", float, 10000.0)
    factor = get("rope.scaling.factor", float, 0.0) or 1.0
    scaling = get("rope.scaling.type", str, "linear" if factor != 1.0 else "none")
    magnitude = get("rope.scaling.attn_factor", float, 1.0)
    yarn = None
    if scaling == "yarn":
        original = positive("rope.scaling.original_context_length", n_ctx_train)
        yarn = (factor, original, get("rope.scaling.yarn_beta_fast", float, 32.0), get("rope.scaling.yarn_beta_slow", float, 1.0))
        magnitude *= 1.0 + 0.1 * math.log(factor)
    elif scaling not in ("none", "linear", "longrope"):
        raise UnsupportedModelError(f"rotary scaling {scaling!r} (key {architecture}.rope.scaling.type) is not supported")
    rope = Rope(n_dims, freq_base, 1.0 / factor if scaling == "linear" else 1.0, yarn, magnitude)
    local_base = get("rope.freq_base_swa", float, row.local_freq_base or freq_base)
    local_rope = Rope(n_dims, local_base) if row.local_freq_base else rope
    return ModelConfig(
        architecture=str(architecture),
        row=row,
        n_layers=positive("block_count"),
        n_embd=n_embd,
        n_ff=positive("feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_ctx_train=n_ctx_train,
        norm_eps=get("attention.layer_norm_rms_epsilon", float),
        rope=rope,
        local_rope=local_rope,
        sliding_window=get("attention.sliding_window", int, 0) if row.local_pattern else 0,
        embedding_scale=get("embedding_scale", float, math.sqrt(n_embd) if row.scale_embedding else 1.0),
        residual_scale=get("residual_scale", float, 1.0),
        attention_scale=get("attention.scale", float, 1.0 / math.sqrt(head_dim)),
        logit_scale=1.0 / (get("logit_scale", float, 0.0) or 1.0),
        attention_softcap=get("attn_logit_softcapping", float, 50.0 if architecture == "gemma2" else 0.0),
        logit_softcap=get("final_logit_softcapping", float, 30.0 if architecture == "gemma2" else 0.0),
    )
