"""genai_config.json: what onnxruntime-genai asks for to run a folder exported for the CPU. Its keys are those of its own src/config.h."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgelm.backends.config import ModelConfig
from edgelm.quant.huggingface_tokenizer import EOS_TOKEN_IDS

GENAI_CONFIG = "genai_config.json"
# Where its name for an architecture is another. Its own phi3 computes the whole prompt anew beyond 4096 tokens, for graphs that change
# their rotary factors there; ours have the factors of the context they were exported with, and its plain decoder fits.
_TYPES: Mapping[str, str] = MappingProxyType({"gemma3": "gemma3_text", "phi3": "decoder"})
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def genai_config(config: ModelConfig, metadata: Mapping[str, Any], n_vocab: int, n_ctx: int, graph: str) -> dict[str, Any]:
    """The configuration as JSON values.

    Args:
        metadata: of the model file, for the special tokens.
        graph: name of the graph's file.
    """
    ends = _ends(metadata)
    first_end = ends[0] if ends else 0
    begin = _token(metadata, "bos_token_id")
    padding = _token(metadata, "padding_token_id")
    decoder = {
        "filename": graph,
        "session_options": {"provider_options": []},
        "hidden_size": config.n_embd,
        "head_size": config.head_dim,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "num_hidden_layers": config.n_layers,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
    }
    model = {
        "type": _TYPES.get(config.architecture, config.architecture),
        "vocab_size": n_vocab,
        "context_length": n_ctx,
        "bos_token_id": first_end if begin is None else begin,
        "eos_token_id": ends or [first_end],
        "pad_token_id": first_end if padding is None else padding,
        "decoder": decoder,
    }
    search = {
        "do_sample": False,
        "max_length": n_ctx,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }
    return {"model": model, "search": search}


def write_genai_config(folder: Path, values: Mapping[str, Any]) -> None:
    """Write genai_config.json into the folder."""
    (folder / GENAI_CONFIG).write_text(json.dumps(values, indent=2), encoding="utf-8")


def _ends(metadata: Mapping[str, Any]) -> list[int]:
    """Tokens that end a text, the first the model's own."""
    named = [_token(metadata, key) for key in _END_KEYS]
    listed = [int(token) for token in metadata.get(EOS_TOKEN_IDS, ())]
    return list(dict.fromkeys([*(token for token in named if token is not None), *listed]))


def _token(metadata: Mapping[str, Any], key: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}")
    return None if value is None else int(value)
