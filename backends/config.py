"""What a model's metadata says of its forward pass: one row per architecture, one frozen ModelConfig per model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgelm.errors import ModelFileError, UnsupportedModelError

_MAX_LAYERS = 4096  # a sane bound, so that a damaged file cannot make us build huge tables


@dataclass(frozen=True)
class Architecture:
    """What all models of one architecture share, beyond what their metadata says.

    Attributes:
        rope: "adjacent" rotates channels (2i, 2i+1), "halves" rotates channels (i, i + d/2).
        activation: of the gate in the feed-forward network.
        scale_embedding: multiply the embedding by sqrt(n_embd).
        sliding_window: tokens that a local layer sees where the metadata does not say; 0 for no window.
        local_pattern: where there is a window, layer l looks through it unless l % local_pattern == local_pattern - 1; 0 for never.
        no_rope_step: every step-th layer has no rotary embedding; 0 for none.
        rope_switch: the metadata key rope.scaling.finetuned, where it is false, switches the rotary embedding off.
        local_freq_base: rotary base of the sliding-window layers where the metadata does not say, unscaled; None for the global rotation.
        wide_model_layers: the model of so many layers scales attention by sqrt(n_heads / n_embd), whatever its head size.
        attention_softcap, logit_softcap: where the metadata does not say; 0 for none.
    """

    rope: Literal["adjacent", "halves"]
    activation: Literal["silu", "gelu"] = "silu"
    scale_embedding: bool = False
    sliding_window: int = 0
    local_pattern: int = 0
    no_rope_step: int = 0
    rope_switch: bool = False
    local_freq_base: float | None = None
    wide_model_layers: int = 0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0


# The values are llama.cpp's (src/llama-model.cpp and src/models/), as the GGUF files were converted for it.
# phi3 files may name a sliding window; llama.cpp computes them without one, and so do we.
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(rope="adjacent"),
    "smollm3": Architecture(rope="adjacent", no_rope_step=4),
    "granite": Architecture(rope="adjacent", rope_switch=True),
    "qwen2": Architecture(rope="halves"),
    "qwen3": Architecture(rope="halves"),
    "phi3": Architecture(rope="halves"),
    "gemma2": Architecture(
        rope="halves",
        activation="gelu",
        scale_embedding=True,
        sliding_window=4096,
        local_pattern=2,
        wide_model_layers=46,
        attention_softcap=50.0,
        logit_softcap=30.0,
    ),
    "gemma3": Architecture(
        rope="halves", activation="gelu", scale_embedding=True, local_pattern=6, local_freq_base=10000.0, wide_model_layers=62
    ),
}


@dataclass(frozen=True)
class Yarn:
    """YaRN scaling of the rotary embedding (Peng et al. 2023, arXiv 2309.00071).

    Attributes:
        factor: by which the context was stretched.
        beta_fast, beta_slow: turns over the original context above which a channel pair keeps its frequency, and below which it is slowed.
    """

    factor: float
    beta_fast: float
    beta_slow: float


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one kind of layer.

    Attributes:
        n_dims: channels of each head that rotate: the first ones.
        freq_base: theta in theta^(-2i / n_dims).
        original_context: tokens that the model was trained for before its context was stretched.
        position_scale: positions are multiplied by it (linear scaling: 1 / factor).
        yarn: YaRN scaling, or None.
        magnitude: cos and sin are multiplied by it.
    """

    n_dims: int
    freq_base: float
    original_context: int
    position_scale: float = 1.0
    yarn: Yarn | None = None
    magnitude: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """Everything the forward pass needs besides the tensors. Optional tensors (biases, norms) speak for themselves.

    Attributes:
        architecture, row: its name, and what its models share.
        n_layers, n_embd, n_ff, n_heads, n_kv_heads, head_dim: sizes.
        n_ctx_train: tokens that the model was trained for.
        norm_eps: added to the mean square in every RMSNorm.
        rope: rotary embedding of the global layers.
        local_rope: rotary embedding of the sliding-window layers.
        rope_layers: for each layer, whether it has a rotary embedding.
        local_layers: for each layer, whether it looks through the sliding window.
        sliding_window: the last so many tokens, the query's own included, are what a local layer sees.
        embedding_scale: the embedding is multiplied by it.
        residual_scale: what attention and feed-forward add to the stream is multiplied by it.
        attention_scale: q.k is multiplied by it.
        logit_scale: logits are multiplied by it.
        attention_softcap, logit_softcap: x becomes cap * tanh(x / cap); 0 for none.
    """

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
    rope_layers: tuple[bool, ...]
    local_layers: tuple[bool, ...]
    sliding_window: int
    embedding_scale: float
    residual_scale: float
    attention_scale: float
    logit_scale: float
    attention_softcap: float
    logit_softcap: float

    def is_local(self, layer: int) -> bool:
        """Whether the layer attends through the sliding window."""
        return self.local_layers[layer]

    def has_rope(self, layer: int) -> bool:
        """Whether the layer rotates its queries and keys."""
        return self.rope_layers[layer]


class _Keys:
    """Checked access to the metadata keys of one architecture."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self._metadata, self._architecture = metadata, architecture

    def value(self, key: str, default: object = None) -> Any:
        full = f"{self._architecture}.{key}"
        value = self._metadata.get(full, default)
        if value is None:
            raise ModelFileError(f"the metadata key {full} is missing; the file is incomplete, fetch or convert it again")
        return value

    def fail(self, key: str, value: object, wanted: str) -> ModelFileError:
        return ModelFileError(f"the metadata key {self._architecture}.{key} is {value!r}, not {wanted}; fetch or convert the file again")

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1) -> int:
        value = self.value(key, default)
        try:
            values = {int(item) for item in value} if hasattr(value, "__len__") and not isinstance(value, str) else {int(value)}
        except (TypeError, ValueError, OverflowError):
            raise self.fail(key, value, "a whole number") from None
        if len(values) > 1:
            raise UnsupportedModelError(
                f"the metadata key {self._architecture}.{key} differs from layer to layer ({sorted(values)}), "
                "which edgelm does not run; choose a model whose layers are alike"
            )
        number = values.pop() if values else low - 1
        if not low <= number <= high:
            raise self.fail(key, value, f"a whole number from {low} to {high}")
        return number

    def real(self, key: str, default: float | None = None, above: float = -math.inf) -> float:
        value = self.value(key, default)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise self.fail(key, value, "a number") from None
        if not math.isfinite(number) or number <= above:
            raise self.fail(key, value, "a finite number" + (f" above {above:g}" if above > -math.inf else ""))
        return number


def read_config(metadata: Mapping[str, Any]) -> ModelConfig:
    """Read and check the configuration of a model.

    Raises:
        UnsupportedModelError: the architecture is not one of ARCHITECTURES, or the model has a shape that edgelm does not run.
        ModelFileError: a key is missing or its value makes no sense.
    """
    architecture = metadata.get("general.architecture")
    row = ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None
    if row is None or not isinstance(architecture, str):
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedModelError(
            f"architecture {architecture!r} (key general.architecture) is not supported; choose a model of one of {known}"
        )
    keys = _Keys(metadata, architecture)
    if keys.integer("expert_count", 0, low=0):
        raise UnsupportedModelError(f"{architecture} models with experts are not supported; choose a dense model")
    n_layers = keys.integer("block_count", high=_MAX_LAYERS)
    n_embd, n_heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    n_kv_heads = keys.integer("attention.head_count_kv", n_heads)
    head_dim = keys.integer("attention.key_length", max(n_embd // n_heads, 1))
    if n_heads % n_kv_heads or head_dim % 2 or keys.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(
            f"{n_heads} heads of {head_dim} channels with {n_kv_heads} KV heads is not supported; choose a model with an even head size, "
            "the same for keys and values, and a head count that is a multiple of the KV head count"
        )
    window, local_layers = _local_layers(keys, row, n_layers)
    rope, local_rope = _ropes(keys, row, head_dim)
    default_scale = math.sqrt(n_heads / n_embd if n_layers == row.wide_model_layers else 1.0 / head_dim)
    return ModelConfig(
        architecture=architecture,
        row=row,
        n_layers=n_layers,
        n_embd=n_embd,
        n_ff=keys.integer("feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_ctx_train=keys.integer("context_length"),
        norm_eps=keys.real("attention.layer_norm_rms_epsilon", above=0.0),
        rope=rope,
        local_rope=local_rope,
        rope_layers=_rope_layers(keys, row, n_layers),
        local_layers=local_layers,
        sliding_window=window,
        embedding_scale=keys.real("embedding_scale", 0.0) or (math.sqrt(n_embd) if row.scale_embedding else 1.0),
        residual_scale=keys.real("residual_scale", 0.0) or 1.0,
        attention_scale=keys.real("attention.scale", 0.0) or default_scale,
        logit_scale=1.0 / (keys.real("logit_scale", 0.0) or 1.0),
        attention_softcap=keys.real("attn_logit_softcapping", row.attention_softcap, above=-1e-30),
        logit_softcap=keys.real("final_logit_softcapping", row.logit_softcap, above=-1e-30),
    )


def _local_layers(keys: _Keys, row: Architecture, n_layers: int) -> tuple[int, tuple[bool, ...]]:
    """The sliding window, and which layers look through it."""
    window = keys.integer("attention.sliding_window", row.sliding_window, low=0) if row.local_pattern else 0
    if not window:
        return 0, (False,) * n_layers
    pattern = keys.value("attention.sliding_window_pattern", row.local_pattern)
    if hasattr(pattern, "__len__"):
        if isinstance(pattern, str) or len(pattern) != n_layers:
            raise keys.fail("attention.sliding_window_pattern", pattern, f"a number, or one truth value for each of {n_layers} layers")
        return window, tuple(bool(local) for local in pattern)
    step = keys.integer("attention.sliding_window_pattern", row.local_pattern)
    return window, tuple(layer % step < step - 1 for layer in range(n_layers))


def _rope_layers(keys: _Keys, row: Architecture, n_layers: int) -> tuple[bool, ...]:
    if row.rope_switch and not keys.value("rope.scaling.finetuned", True):
        return (False,) * n_layers
    return tuple(not row.no_rope_step or (layer + 1) % row.no_rope_step != 0 for layer in range(n_layers))


def _ropes(keys: _Keys, row: Architecture, head_dim: int) -> tuple[Rope, Rope]:
    """Rotary embeddings of the global and of the sliding-window layers."""
    n_dims = keys.integer("rope.dimension_count", head_dim, low=2, high=head_dim)
    if n_dims % 2:
        raise keys.fail("rope.dimension_count", n_dims, "an even number")
    freq_base = keys.real("rope.freq_base", 10000.0, above=1.0)
    original = keys.integer("rope.scaling.original_context_length", keys.integer("context_length"))
    magnitude = keys.real("rope.scaling.attn_factor", 1.0, above=0.0)
    local_base = keys.real("rope.freq_base_swa", row.local_freq_base or freq_base, above=1.0)
    local = Rope(n_dims, local_base, original, magnitude=magnitude) if row.local_freq_base else None
    # Files of before the key's renaming say scale_linear.
    factor = keys.real("rope.scaling.factor", keys.real("rope.scale_linear", 0.0), above=-1e-30) or 1.0
    scaling = keys.value("rope.scaling.type", "linear")
    if scaling == "yarn":
        yarn = Yarn(factor, keys.real("rope.scaling.yarn_beta_fast", 32.0), keys.real("rope.scaling.yarn_beta_slow", 1.0))
        # The paper's temperature: attention sharpens by 0.1 ln(factor) + 1, on q and on k.
        rope = Rope(n_dims, freq_base, original, yarn=yarn, magnitude=magnitude * (1.0 + 0.1 * math.log(max(factor, 1.0))))
    elif scaling in ("none", "linear", "longrope"):
        rope = Rope(n_dims, freq_base, original, position_scale=1.0 if scaling == "none" else 1.0 / factor, magnitude=magnitude)
    else:
        raise UnsupportedModelError(
            f"rotary scaling {scaling!r} (key rope.scaling.type) is not supported; edgelm knows linear, yarn, longrope"
        )
    return rope, local or rope
