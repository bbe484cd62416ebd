"""From a Hugging Face config.json to the metadata that llama.cpp's convert_hf_to_gguf.py writes for the same model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.json_file import JsonObject


@dataclass(frozen=True)
class Architecture:
    """How the Hugging Face form of an architecture differs from its GGUF form.

    Attributes:
        name: in GGUF.
        permute: rows of q and k are stored for rotation by halves, while GGUF has them for rotation of adjacent channels.
        norm_offset: added to norm weights; Gemma stores them less 1.
        sandwich: norms stand before and after both attention and feed-forward.
        tied: the output layer is the embedding where config.json does not say.
        has_head_dim: config.json's head_dim counts (Granite and Phi-3 ignore it).
        activation: the only gate activation there is in GGUF, as config.json calls it.
    """

    name: str
    permute: bool = False
    norm_offset: float = 0.0
    sandwich: bool = False
    tied: bool = False
    has_head_dim: bool = True
    activation: str = "silu"


_MAX_HEAD_DIM = 65536  # bounds the table of rotary factors
_GELU = "gelu_pytorch_tanh"
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "LlamaForCausalLM": Architecture("llama", permute=True),
        "MistralForCausalLM": Architecture("llama", permute=True),
        "SmolLM3ForCausalLM": Architecture("smollm3", permute=True, tied=True),
        "GraniteForCausalLM": Architecture("granite", permute=True, has_head_dim=False),
        "Qwen2ForCausalLM": Architecture("qwen2"),
        "Qwen3ForCausalLM": Architecture("qwen3"),
        "Phi3ForCausalLM": Architecture("phi3", has_head_dim=False),
        "Gemma2ForCausalLM": Architecture("gemma2", norm_offset=1.0, sandwich=True, tied=True, activation=_GELU),
        "Gemma3ForCausalLM": Architecture("gemma3", norm_offset=1.0, sandwich=True, tied=True, activation=_GELU),
    }
)

# GGUF key under the architecture's name: key in config.json. Granite calls its scales multipliers.
_REQUIRED_INTEGERS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "vocab_size": "vocab_size",
}
_OPTIONAL_REALS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_YARN_REALS = {
    "yarn_ext_factor": "extrapolation_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


class HuggingFaceConfig:
    """A config.json, understood.

    Attributes:
        architecture: row of ARCHITECTURES.
        tied: the output layer is the embedding; None where config.json does not say, and the tensors will.
        n_heads, n_kv_heads, n_layers: sizes.
        metadata: values under GGUF keys.
        rope_factors: float32 [n_rotating / 2] by GGUF tensor name; what divides each frequency.

    Raises:
        ModelFileError: a key is missing or its value makes no sense.
        UnsupportedModelError: an architecture, activation or rotary scaling that edgelm does not read.
    """

    def __init__(self, config: JsonObject) -> None:
        self._config = config
        self.architecture = _find_architecture(config)
        _check_supported(config, self.architecture)
        self.n_layers = config.integer("num_hidden_layers")
        self.n_heads = config.integer("num_attention_heads")
        self.n_kv_heads = config.integer("num_key_value_heads", self.n_heads)
        n_embd = config.integer("hidden_size")
        if not 0 < self.n_kv_heads <= self.n_heads <= n_embd:
            sizes = f"{self.n_heads} heads, {self.n_kv_heads} KV heads and a width of {n_embd}"
            raise ModelFileError(f"{config.where}: {sizes} do not go together; fetch the file again")
        self.tied = config.truth("tie_word_embeddings", True if self.architecture.tied else None)
        own_head_dim = config.integer("head_dim", None) if self.architecture.has_head_dim else None
        self._head_dim = own_head_dim or n_embd // self.n_heads
        if self._head_dim > _MAX_HEAD_DIM:
            raise ModelFileError(f"{config.where}: heads of {self._head_dim} channels make no sense; fetch the file again")
        self._values: dict[str, Any] = {key: config.integer(name) for key, name in _REQUIRED_INTEGERS.items()}
        self._values["attention.head_count_kv"] = self.n_kv_heads
        self._values["attention.layer_norm_rms_epsilon"] = config.real("rms_norm_eps")
        if own_head_dim:
            self._values |= {"attention.key_length": own_head_dim, "attention.value_length": own_head_dim}
        # Null is none at all, which is not the same as a missing key: that one stands for the architecture's usual value.
        self._values |= {key: config.real(name, 0.0) for key, name in _OPTIONAL_REALS.items() if name in config.values}
        if (scalar := config.real("query_pre_attn_scalar", 0.0)) > 0:
            self._values["attention.scale"] = scalar**-0.5
        self._add_window()
        self.rope_factors = self._add_rope()
        name = self.architecture.name
        self.metadata: Mapping[str, Any] = {"general.architecture": name} | {f"{name}.{k}": v for k, v in self._values.items()}

    # -- sliding window ---------------------------------------------------------------------------------------------------------------

    def _add_window(self) -> None:
        """Sliding window of Gemma and Phi-3. llama.cpp runs the others without one, and so does edgelm."""
        if self.architecture.name == "phi3":
            self._values["attention.sliding_window"] = self._config.integer("sliding_window", 0)
        if not self.architecture.sandwich:
            return
        self._values["attention.sliding_window"] = self._config.integer("sliding_window")
        layers = self._config.values.get("layer_types")
        if layers is not None:
            if not isinstance(layers, list) or len(layers) != self.n_layers:
                raise self._config.fail("layer_types", f"a list of {self.n_layers} layer types")
            self._values["attention.sliding_window_pattern"] = np.array([kind == "sliding_attention" for kind in layers])
        elif (step := self._config.integer("sliding_window_pattern", None)) is not None:
            self._values["attention.sliding_window_pattern"] = step

    # -- rotary embedding -------------------------------------------------------------------------------------------------------------

    def _add_rope(self) -> dict[str, NDArray[np.float32]]:
        """The rotary embedding's metadata, and its factor tensors.

        Older files have rope_theta and rope_scaling; newer ones rope_parameters, with one object for each kind of layer in Gemma 3.
        """
        config = self._config
        outer = config.object("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
        rope = outer.object("full_attention") if outer.has("full_attention") else outer
        base = rope.real("rope_theta", config.real("rope_theta", 1_000_000.0 if self.architecture.name == "gemma3" else 10_000.0))
        if base <= 1:
            raise config.fail("rope_theta", "a number above 1")
        self._values["rope.freq_base"] = base
        local_base = outer.object("sliding_attention").real("rope_theta", config.real("rope_local_base_freq", None))
        if local_base is not None:
            self._values["rope.freq_base_swa"] = local_base
        n_dims = self._head_dim
        if self.architecture.name == "phi3":
            n_dims = int(n_dims * rope.real("partial_rotary_factor", config.real("partial_rotary_factor", 1.0)))
            if not 0 < n_dims <= self._head_dim:
                raise config.fail("partial_rotary_factor", "a number above 0 and up to 1")
        if self.architecture.permute or self.architecture.name == "phi3":
            self._values["rope.dimension_count"] = n_dims
        return self._add_scaling(rope, base, n_dims)

    def _add_scaling(self, rope: JsonObject, base: float, n_dims: int) -> dict[str, NDArray[np.float32]]:
        kind = rope.text("rope_type", rope.text("type", "default"))
        original = rope.integer("original_max_position_embeddings", self._config.integer("original_max_position_embeddings", None))
        if self.architecture.name == "phi3":
            self._values["rope.scaling.original_context_length"] = original or self._config.integer("max_position_embeddings")
        # "dynamic" changes the base only beyond the trained context.
        if kind in ("default", "dynamic"):
            return {}
        if kind == "llama3":
            return {"rope_freqs.weight": _llama3_factors(rope, original or 8192, base, n_dims)}
        if kind in ("longrope", "su") and self.architecture.name == "phi3":
            return self._longrope(rope, original or self._config.integer("max_position_embeddings"), n_dims)
        if kind not in ("linear", "yarn"):
            raise UnsupportedModelError(
                f"{rope.where}: rotary scaling {kind!r} is not supported; edgelm knows linear, yarn, llama3, longrope"
            )
        self._values |= {"rope.scaling.type": kind, "rope.scaling.factor": rope.real("factor")}
        if kind == "yarn":
            self._values["rope.scaling.original_context_length"] = original or self._config.integer("max_position_embeddings")
            self._values |= {f"rope.scaling.{key}": rope.real(name) for key, name in _YARN_REALS.items() if rope.has(name)}
            if rope.has("attention_factor"):
                # It replaces YaRN's own factor in transformers, but multiplies it in GGUF.
                own = 0.1 * math.log(max(rope.real("factor"), 1.0)) + 1.0
                self._values["rope.scaling.attn_factor"] = rope.real("attention_factor") / own
        return {}

    def _longrope(self, rope: JsonObject, original: int, n_dims: int) -> dict[str, NDArray[np.float32]]:
        """Phi-3's scaling (Ding et al. 2024, arXiv 2402.13753): one factor per frequency for short and one for long contexts.

        Cos and sin are multiplied by sqrt(1 + ln(stretch) / ln(original context)).
        """
        if original < 2:
            raise rope.fail("original_max_position_embeddings", "a number above 1")
        stretch = self._config.integer("max_position_embeddings") / original
        self._values["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
        factors = {}
        for length in ("long", "short"):
            values = np.array(rope.reals(f"{length}_factor"), np.float32)
            if len(values) != n_dims // 2:
                raise rope.fail(f"{length}_factor", f"a list of {n_dims // 2} numbers")
            factors[f"rope_factors_{length}.weight"] = values
        return factors


def _find_architecture(config: JsonObject) -> Architecture:
    names = config.values.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise config.fail("architectures", "a list with the name of the model's class")
    architecture = ARCHITECTURES.get(names[0])
    if architecture is None:
        raise UnsupportedModelError(
            f"{config.where}: the architecture {names[0][:100]!r} is not supported; edgelm reads {', '.join(ARCHITECTURES)}"
        )
    return architecture


def _check_supported(config: JsonObject, architecture: Architecture) -> None:
    activation = config.text("hidden_activation", config.text("hidden_act", architecture.activation))
    if activation != architecture.activation:
        raise UnsupportedModelError(
            f"{config.where}: the activation {activation!r} is not supported for {architecture.name}, only {architecture.activation!r}"
        )
    # GGUF has no key for it: llama.cpp takes every fourth layer of SmolLM3 to have no rotary embedding.
    rope_layers = config.values.get("no_rope_layers")
    usual = [int((layer + 1) % 4 != 0) for layer in range(len(rope_layers))] if isinstance(rope_layers, list) else []
    if architecture.name == "smollm3" and rope_layers not in (None, usual):
        raise UnsupportedModelError(f"{config.where}: no_rope_layers other than every fourth layer is not supported")


def _llama3_factors(rope: JsonObject, original: int, base: float, n_dims: int) -> NDArray[np.float32]:
    """What divides each frequency of Llama 3.1 and later, float32 [n_dims / 2].

    Wavelengths shorter than original / high_freq_factor stay, those longer than original / low_freq_factor are stretched by factor, and
    those between pass smoothly from one to the other (transformers, modeling_rope_utils.py).
    """
    factor, low, high = rope.real("factor", 8.0), rope.real("low_freq_factor", 1.0), rope.real("high_freq_factor", 4.0)
    if not (factor > 0 and 0 < low < high):
        raise ModelFileError(f"{rope.where}: factor {factor}, low_freq_factor {low}, high_freq_factor {high} make no sense; fetch it again")
    frequency = base ** (-np.arange(0, n_dims, 2, dtype=np.float64) / n_dims)
    wavelength = 2 * math.pi / frequency
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
