"""The metadata of any model file as the entries of a GGUF file that llama.cpp loads.

A Hugging Face folder's vocabulary goes along under tokenizer.ggml.*; a GGUF file's own entries stay as they are. llama.cpp refuses values
of another type than it expects: whole numbers are uint32, others float32, token types an int32 array and scores a float32 array
(src/llama-model-loader.cpp, src/llama-vocab.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.gguf_vocabulary import read_vocabulary
from edgelm.quant.gguf_writer import entry
from edgelm.quant.huggingface_tokenizer import EOS_TOKEN_IDS, TOKENIZER_JSON

# general.file_type by the format of most weights (llama_ftype of include/llama.h; K-quants as their M mixtures).
FILE_TYPES: Mapping[str, int] = MappingProxyType(
    {
        "F32": 0,
        "F16": 1,
        "Q4_0": 2,
        "Q4_1": 3,
        "Q8_0": 7,
        "Q5_0": 8,
        "Q5_1": 9,
        "Q4_K": 15,
        "Q5_K": 17,
        "Q6_K": 18,
        "IQ4_NL": 25,
        "IQ4_XS": 30,
        "BF16": 32,
    }
)
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_ARRAY_TYPES = {"tokenizer.ggml.token_type": np.int32, "tokenizer.ggml.scores": np.float32}
# Of the file that was read, not of the one that is written.
_LEFT_OUT = (TOKENIZER_JSON, EOS_TOKEN_IDS, "general.alignment", "split.no", "split.count", "split.tensors.count")
_WIDE_GEMMA = {"gemma2": 46, "gemma3": 62}  # the layers of the 27B models, which divide the width by the heads
# Texts by which llama.cpp knows that a token ends the answer.
_KNOWN_ENDS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
        *("<|end_of_text|>", "<end_of_utterance>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<|return|>", "<|call|>"),
    )
)


def encode_metadata(metadata: Mapping[str, Any], file_type: str | None = None) -> tuple[bytes, int]:
    """The entries for gguf_writer.write_gguf, and how many they are.

    Args:
        metadata: of any ModelFile, with what the caller adds or changes; vocabularies are read from the tokenizer.json it points to.
        file_type: name of the format that most weights have, for general.file_type; None keeps what the metadata says.

    Raises:
        ModelFileError: the tokenizer's file cannot be read or contradicts the rest; or there is no tokenizer.
        UnsupportedModelError: a tokenizer that llama.cpp would not run alike.
        InvalidRequestError: a value of a type that GGUF does not hold.
    """
    values = gguf_metadata(metadata)
    if file_type is not None:
        values["general.file_type"] = FILE_TYPES[file_type]
    return b"".join(_encoded(key, value) for key, value in values.items()), len(values)


def gguf_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The same metadata as a GGUF file has it: the vocabulary in place of a path to it, and arrays of the types that llama.cpp wants.

    Raises: as encode_metadata.
    """
    values = dict(metadata)
    if TOKENIZER_JSON in metadata:
        n_vocab = metadata[f"{metadata['general.architecture']}.vocab_size"]
        values |= read_vocabulary(Path(metadata[TOKENIZER_JSON]), n_vocab)
        values |= _first_and_last(values)
    elif "tokenizer.ggml.model" not in metadata:
        raise ModelFileError("the model has no tokenizer (tokenizer.json, in a folder), and could not be run without; fetch it whole")
    _check_attention_scale(metadata)
    values["general.quantization_version"] = _QUANTIZATION_VERSION
    return {key: _typed(key, value) for key, value in values.items() if key not in _LEFT_OUT}


def _encoded(key: str, value: Any) -> bytes:
    try:
        return entry(key, value)
    except UnicodeEncodeError as error:
        part = error.object[error.start : error.end]
        raise ModelFileError(f"the metadata value {key} has {part!r:.60} in it, which is no text; fetch the model again") from None


def _check_attention_scale(metadata: Mapping[str, Any]) -> None:
    """llama.cpp reads no scale for Gemma, but takes it from the sizes (src/models/gemma2.cpp and gemma3.cpp)."""
    name = metadata.get("general.architecture")
    scale = metadata.get(f"{name}.attention.scale")
    if name not in _WIDE_GEMMA or scale is None:
        return
    n_embd, n_heads, n_layers = (metadata[f"{name}.{key}"] for key in ("embedding_length", "attention.head_count", "block_count"))
    wide = n_layers == _WIDE_GEMMA[name]
    size = n_embd // n_heads if wide else metadata.get(f"{name}.attention.key_length", n_embd // n_heads)
    if not math.isclose(scale, size**-0.5, rel_tol=1e-6):
        raise UnsupportedModelError(
            f"the model scales attention by {scale:.6g}, but llama.cpp runs {name} with {size**-0.5:.6g}, for which GGUF has no key"
        )


def _typed(key: str, value: Any) -> Any:
    if isinstance(value, np.ndarray) and key in _ARRAY_TYPES:
        return value.astype(_ARRAY_TYPES[key])
    if isinstance(value, np.ndarray) and value.dtype == np.float64:
        return value.astype(np.float32)
    return value.item() if isinstance(value, np.generic) else value


def _first_and_last(values: Mapping[str, Any]) -> dict[str, Any]:
    """Whether BOS and EOS are added, said outright as llama.cpp's guess may differ, and the further tokens that end an answer."""
    found: dict[str, Any] = {}
    for kind in ("bos", "eos"):
        key = f"tokenizer.ggml.add_{kind}_token"
        found[key] = bool(values.get(key, False)) and f"tokenizer.ggml.{kind}_token_id" in values
    tokens = values["tokenizer.ggml.tokens"]
    eos = values.get("tokenizer.ggml.eos_token_id")
    others = [token for token in values.get(EOS_TOKEN_IDS, ()) if token != eos and token < len(tokens) and tokens[token] not in _KNOWN_ENDS]
    if len(others) > 2:
        raise UnsupportedModelError(
            f"the tokens {others} all end an answer, besides {eos}; GGUF has room for two: shorten eos_token_id in generation_config.json"
        )
    return found | dict(zip(("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"), others, strict=False))
