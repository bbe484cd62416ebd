"""Writes tiny random-weight Hugging Face folders, one for every architecture that edgelm reads.

`write_folder(path, "Qwen3ForCausalLM")` writes config.json, safetensors and the tokenizer's files; `CLASSES` names the architectures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

N_LAYERS, N_EMBD, N_FF, N_HEADS, N_KV_HEADS, HEAD_DIM, N_VOCAB = 2, 64, 48, 4, 2, 24, 40
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

# What each class adds to the configuration below, as published models have it.
CLASSES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"head_dim": HEAD_DIM, "rope_theta": 500000.0, "attention_bias": True, "mlp_bias": True},
    "MistralForCausalLM": {"head_dim": HEAD_DIM, "sliding_window": None},
    "SmolLM3ForCausalLM": {"no_rope_layers": [1] * N_LAYERS, "tie_word_embeddings": True},
    "GraniteForCausalLM": {
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    },
    "Qwen2ForCausalLM": {"tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 32768},
    "Qwen3ForCausalLM": {"head_dim": HEAD_DIM},
    "Phi3ForCausalLM": {"original_max_position_embeddings": 4096, "sliding_window": 2047},
    "Gemma2ForCausalLM": {
        "head_dim": HEAD_DIM,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 16,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 16,
    },
    "Gemma3ForCausalLM": {
        "head_dim": HEAD_DIM,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 16,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "layer_types": ["sliding_attention", "full_attention"],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
}


def config(class_name: str, **changes: Any) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "architectures": [class_name],
        "hidden_act": "silu",
        "hidden_size": N_EMBD,
        "intermediate_size": N_FF,
        "max_position_embeddings": 8192,
        "num_attention_heads": N_HEADS,
        "num_hidden_layers": N_LAYERS,
        "num_key_value_heads": N_KV_HEADS,
        "rms_norm_eps": 1e-6,
        "vocab_size": N_VOCAB,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **CLASSES[class_name],
        **changes,
    }


def weights(class_name: str, dtype: str = "F32", seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random tensors under Hugging Face names."""
    rng = np.random.default_rng(seed)
    head_dim = CLASSES[class_name].get("head_dim", N_EMBD // N_HEADS)
    n_q, n_kv = N_HEADS * head_dim, N_KV_HEADS * head_dim
    gemma = class_name.startswith("Gemma")
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (N_VOCAB, N_EMBD), "model.norm.weight": (N_EMBD,)}
    if not (gemma or CLASSES[class_name].get("tie_word_embeddings")):
        shapes["lm_head.weight"] = (N_VOCAB, N_EMBD)
    for layer in range(N_LAYERS):
        block: dict[str, tuple[int, ...]] = {"self_attn.o_proj.weight": (N_EMBD, n_q), "mlp.down_proj.weight": (N_EMBD, N_FF)}
        norms = ["input_layernorm", "post_attention_layernorm"]
        if gemma:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        block |= {f"{norm}.weight": (N_EMBD,) for norm in norms}
        if class_name in ("Qwen3ForCausalLM", "Gemma3ForCausalLM"):
            block |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
        if class_name == "Phi3ForCausalLM":
            block |= {"self_attn.qkv_proj.weight": (n_q + 2 * n_kv, N_EMBD), "mlp.gate_up_proj.weight": (2 * N_FF, N_EMBD)}
        else:
            rows = {"self_attn.q_proj": n_q, "self_attn.k_proj": n_kv, "self_attn.v_proj": n_kv, "mlp.gate_proj": N_FF, "mlp.up_proj": N_FF}
            block |= {f"{name}.weight": (n, N_EMBD) for name, n in rows.items()}
            if class_name in ("Qwen2ForCausalLM", "LlamaForCausalLM"):
                block |= {f"self_attn.{name}_proj.bias": (n,) for name, n in (("q", n_q), ("k", n_kv), ("v", n_kv))}
            if class_name == "LlamaForCausalLM":
                block |= {"self_attn.o_proj.bias": (N_EMBD,), "mlp.down_proj.bias": (N_EMBD,)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return {name: rng.standard_normal(shape).astype(DTYPES[dtype]) for name, shape in shapes.items()}


_AS_IT_STANDS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def write_shards(folder: Path, tensors: dict[str, NDArray[Any]], n_shards: int) -> None:
    """The tensors in so many files, with an index where there are several."""
    if n_shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    homes = {name: f"model-{i % n_shards + 1:05}-of-{n_shards:05}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(homes.values()):
        save_file({name: tensor for name, tensor in tensors.items() if homes[name] == shard}, folder / shard)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": homes})


def write_folder(folder: Path, class_name: str, dtype: str = "F32", n_shards: int = 1, **changes: Any) -> dict[str, NDArray[Any]]:
    """Write a whole folder; `changes` go into config.json. Returns the tensors."""
    folder.mkdir(exist_ok=True)
    tensors = weights(class_name, dtype)
    write_shards(folder, tensors, n_shards)
    write_json(folder / "config.json", config(class_name, **changes))
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": [
                {"id": i, "content": text, "special": True, **_AS_IT_STANDS} for i, text in enumerate(("<unk>", "<s>", "</s>"))
            ],
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
            },
            "pre_tokenizer": _BYTE_LEVEL,
            "decoder": _BYTE_LEVEL,
            "model": {"type": "BPE", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, "merges": []},
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {str(i): {"content": text} for i, text in enumerate(("<unk>", "<s>", "</s>"))},
            "bos_token": "<s>",
            "eos_token": {"content": "</s>"},
            "unk_token": "<unk>",
            "chat_template": "{{ messages[0].content }}",
        },
    )
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, 7]})
    return tensors
