"""Writes tiny random-weight GGUF files, one for every architecture and every variation of the forward pass.

`write_tiny(path, "gemma3", window=12)` writes a file of a few hundred kilobytes that edgelm and llama.cpp both load and run.
`VARIANTS` names the combinations that tests go through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import libgguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import TokenType
from numpy.typing import NDArray

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TinyModel:
    """Sizes and peculiarities of one tiny model.

    Attributes:
        format: block format of the linear layers ("F32", "Q4_1", "Q4_K", ...); K-quants need n_embd, n_ff and heads in multiples of 256.
        embedding_format: block format of token_embd.weight, and of output.weight where there is one.
        tied: the output layer is the embedding; otherwise output.weight is written.
        qkv_bias, output_bias, ffn_bias: write biases of q, k, v; of the attention's output; of gate, up, down.
        qk_norm, post_norm: write norms of each q and k head; norms after attention and feed-forward.
        fused: write attn_qkv.weight and a fused gate-and-up ffn_up.weight, as phi3 does.
        rope_dims: channels that rotate; None for the whole head.
        rope_factors: write rope_freqs.weight, as Llama 3 does.
        longrope: write rope_factors_long.weight and rope_factors_short.weight.
        extra: further metadata, as (kind of value, key without the architecture, value).
    """

    architecture: str
    seed: int = 0
    format: str = "F32"
    embedding_format: str = "F32"
    n_layers: int = 3
    n_embd: int = 64
    n_ff: int = 96
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int | None = None
    n_vocab: int = 288
    n_ctx: int = 512
    tied: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    ffn_bias: bool = False
    qk_norm: bool = False
    post_norm: bool = False
    fused: bool = False
    rope_base: float = 10000.0
    rope_dims: int | None = None
    rope_factors: bool = False
    longrope: bool = False
    extra: tuple[tuple[str, str, Any], ...] = ()

    @property
    def head(self) -> int:
        return self.head_dim or self.n_embd // self.n_heads


_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "smollm3": {"n_layers": 5},
    "granite": {
        "extra": (
            ("float32", "embedding_scale", 12.0),
            ("float32", "residual_scale", 0.22),
            ("float32", "attention.scale", 0.2),
            ("float32", "logit_scale", 8.0),
        )
    },
    "qwen2": {"qkv_bias": True, "rope_base": 1e6},
    "qwen3": {"qk_norm": True, "head_dim": 32, "rope_base": 1e6},
    "phi3": {"fused": True, "tied": False},
    "gemma2": {
        "post_norm": True,
        "head_dim": 32,
        "extra": (
            ("float32", "attn_logit_softcapping", 2.0),
            ("float32", "final_logit_softcapping", 3.0),
            ("uint32", "attention.sliding_window", 16),
        ),
    },
    "gemma3": {
        "post_norm": True,
        "qk_norm": True,
        "n_layers": 8,
        "head_dim": 32,
        "n_kv_heads": 1,
        "rope_base": 1e6,
        "extra": (
            ("uint32", "attention.sliding_window", 16),
            ("string", "rope.scaling.type", "linear"),
            ("float32", "rope.scaling.factor", 8.0),
        ),
    },
}

_LINEAR_ROPE = (("string", "rope.scaling.type", "linear"), ("float32", "rope.scaling.factor", 4.0))
_YARN = (
    ("string", "rope.scaling.type", "yarn"),
    ("float32", "rope.scaling.factor", 4.0),
    ("uint32", "rope.scaling.original_context_length", 128),
)
_LONGROPE = (
    ("string", "rope.scaling.type", "longrope"),
    ("uint32", "rope.scaling.original_context_length", 256),
    ("float32", "rope.scaling.attn_factor", 1.19),
)

VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-mha": ("llama", {"n_kv_heads": 4}),
    "llama-untied": ("llama", {"tied": False}),
    "llama-biases": ("llama", {"qkv_bias": True, "output_bias": True, "ffn_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 24}),
    "llama-odd-vocab": ("llama", {"n_vocab": 291}),
    "llama-rope-factors": ("llama", {"rope_factors": True, "rope_base": 500000.0}),
    "llama-rope-linear": ("llama", {"extra": _LINEAR_ROPE}),
    "llama-rope-yarn": ("llama", {"extra": _YARN}),
    "smollm3": ("smollm3", {}),
    "granite": ("granite", {}),
    "granite-no-rope": ("granite", {"extra": (*_DEFAULTS["granite"]["extra"], ("bool", "rope.scaling.finetuned", False))}),
    "qwen2": ("qwen2", {}),
    "qwen2-rope-yarn": ("qwen2", {"extra": _YARN}),
    "qwen3": ("qwen3", {}),
    "phi3": ("phi3", {}),
    "phi3-partial-rope": ("phi3", {"rope_dims": 12, "tied": True}),
    "phi3-longrope": ("phi3", {"longrope": True, "extra": _LONGROPE}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3", {}),
    "gemma3-rope-yarn": (
        "gemma3",
        {"extra": (("uint32", "attention.sliding_window", 16), ("float32", "rope.scaling.attn_factor", 1.5), *_YARN)},
    ),
    "gemma3-no-window": ("gemma3", {"extra": ()}),
}

FORMATS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")


def write_variant(path: Path, name: str, **changes: Any) -> Path:
    """Write VARIANTS[name], with changes."""
    architecture, variations = VARIANTS[name]
    return write_tiny(path, architecture, **{**variations, **changes})


def write_tiny(path: Path, architecture: str, **variations: Any) -> Path:
    """Write the tiny model of an architecture; `variations` are fields of TinyModel. Returns the path."""
    model = TinyModel(architecture, **{**_DEFAULTS[architecture], **variations})
    if model.format.endswith("_K") or model.format == "IQ4_XS":  # rows of 256 elements, in every linear layer
        model = replace(model, n_embd=256, n_ff=512, head_dim=64)
    writer = GGUFWriter(path, architecture)
    _add_metadata(writer, model)
    _add_tokenizer(writer, model.n_vocab)
    for name, values, tensor_format in _tensors(model):
        _add_tensor(writer, name, values, tensor_format)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_metadata(writer: GGUFWriter, model: TinyModel) -> None:
    writer.add_name("tiny random weights")  # llama.cpp alters special tokens where the name says phi-3
    writer.add_context_length(model.n_ctx)
    writer.add_embedding_length(model.n_embd)
    writer.add_block_count(model.n_layers)
    writer.add_feed_forward_length(model.n_ff)
    writer.add_head_count(model.n_heads)
    writer.add_head_count_kv(model.n_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(model.rope_base)
    writer.add_rope_dimension_count(model.rope_dims or model.head)
    if model.head_dim:
        writer.add_key_length(model.head_dim)
        writer.add_value_length(model.head_dim)
    for kind, key, value in model.extra:
        getattr(writer, f"add_{kind}")(f"{model.architecture}.{key}", value)


def _byte_symbols() -> list[str]:
    """The 256 printable characters that stand for bytes in byte-level BPE vocabularies (GPT-2's table), in the order of the bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def _add_tokenizer(writer: GGUFWriter, n_vocab: int) -> None:
    """A byte-level BPE of 3 control tokens, the 256 bytes, a few merges, and unused tokens up to n_vocab."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["t h", "h e", "i n", "th e", "Ġ t", "Ġ a", "Ġt he", "e r", "a n", "an d", "Ġ and"]
    tokens = [*control, *_byte_symbols(), *(merge.replace(" ", "") for merge in merges)]
    kinds = [TokenType.CONTROL] * len(control) + [TokenType.NORMAL] * (len(tokens) - len(control))
    n_unused = n_vocab - len(tokens)
    tokens += [f"<unused{i}>" for i in range(n_unused)]
    kinds += [TokenType.UNUSED] * n_unused
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(model: TinyModel) -> Iterator[tuple[str, NDArray[np.float32], str]]:
    """Name, float32 values and format of every tensor. Values keep activations near 1, so that every part of the model matters."""
    rng = np.random.default_rng(model.seed)

    def linear(n_out: int, n_in: int) -> NDArray[np.float32]:
        return (rng.standard_normal((n_out, n_in)) / np.sqrt(n_in)).astype(np.float32)

    def norm(n: int) -> NDArray[np.float32]:
        return (1.0 + 0.2 * rng.standard_normal(n)).astype(np.float32)

    def bias(n: int) -> NDArray[np.float32]:
        return (0.3 * rng.standard_normal(n)).astype(np.float32)

    def growing_factors(last: float) -> NDArray[np.float32]:
        return np.linspace(1.0, last, (model.rope_dims or model.head) // 2, dtype=np.float32)

    embd, ff, q, kv = model.n_embd, model.n_ff, model.n_heads * model.head, model.n_kv_heads * model.head
    yield "token_embd.weight", 2.0 * linear(model.n_vocab, embd), model.embedding_format
    yield "output_norm.weight", norm(embd), "F32"
    if not model.tied:
        yield "output.weight", linear(model.n_vocab, embd), model.embedding_format
    if model.rope_factors:
        yield "rope_freqs.weight", growing_factors(8.0), "F32"
    if model.longrope:
        yield "rope_factors_long.weight", growing_factors(16.0), "F32"
        yield "rope_factors_short.weight", growing_factors(2.0), "F32"
    qkv = {"attn_qkv": (q + 2 * kv, embd)} if model.fused else {"attn_q": (q, embd), "attn_k": (kv, embd), "attn_v": (kv, embd)}
    gate_up = {"ffn_up": (2 * ff, embd)} if model.fused else {"ffn_gate": (ff, embd), "ffn_up": (ff, embd)}
    parts = (
        (qkv, model.qkv_bias),
        ({"attn_output": (embd, q)}, model.output_bias),
        (gate_up | {"ffn_down": (embd, ff)}, model.ffn_bias),
    )
    norms = {"attn_norm": embd, "ffn_norm": embd}
    norms |= {"attn_q_norm": model.head, "attn_k_norm": model.head} if model.qk_norm else {}
    norms |= {"post_attention_norm": embd, "post_ffw_norm": embd} if model.post_norm else {}
    for layer in range(model.n_layers):
        for name, size in norms.items():
            yield f"blk.{layer}.{name}.weight", norm(size), "F32"
        for linears, biased in parts:
            for name, (n_out, n_in) in linears.items():
                yield f"blk.{layer}.{name}.weight", linear(n_out, n_in), model.format
                if biased:
                    yield f"blk.{layer}.{name}.bias", bias(n_out), "F32"


def _add_tensor(writer: GGUFWriter, name: str, values: NDArray[np.float32], tensor_format: str) -> None:
    kind = GGMLQuantizationType[tensor_format]
    if kind is GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    elif kind is GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
    elif kind is GGMLQuantizationType.BF16:
        rounded = (values.view(np.uint32) + 0x8000) >> 16
        writer.add_tensor(name, rounded.astype(np.uint16).view(np.uint8), raw_dtype=kind)
    else:
        writer.add_tensor(name, libgguf.quantize_rows(values, kind), raw_dtype=kind)
