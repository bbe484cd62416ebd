"""A model's tokenizer as the files that other programs read: tokenizer.json and tokenizer_config.json, in Hugging Face's format.

Of a Hugging Face folder they are copied; of a GGUF file's tokenizer.ggml.* keys they are written. What that format cannot say is an error
here, except for one thing: a SentencePiece vocabulary has scores, of which the leftmost of the best is merged first, while the format ranks
pairs, no two alike. The pairs are ranked by score, then as Hugging Face's own converter ranks them (convert_slow_tokenizer.py of
transformers), so that only tokens of equal score can be merged in another order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.huggingface_tokenizer import TOKENIZER_JSON
from edgelm.runtime.pretokenizers import find_pre_tokenizer
from edgelm.runtime.tokenizer.byte_pair import read_merges
from edgelm.runtime.tokenizer.endings import token_id
from edgelm.runtime.tokenizer.ggml import ggml_tokenizer
from edgelm.runtime.tokenizer.parts import TokenizerParts
from edgelm.runtime.tokenizer.sentence_piece import read_scores
from edgelm.runtime.tokenizer.special_tokens import SpecialToken, special_tokens
from edgelm.runtime.tokenizer.split_regexes import pre_tokenizer_json
from edgelm.runtime.tokenizer.vocabulary import SPACE_MARK, Vocabulary

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
_TEMPLATE = "tokenizer.chat_template"
# onnxruntime-extensions goes by this name; transformers reads tokenizer.json for it and adds nothing of its own.
_TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# As in Gemma's own file. It finds nothing, as no space is left by then; but without it, onnxruntime-extensions cuts words as Llama 3 does.
# Where a space is put before the text it must be left out, or onnxruntime-extensions puts none there.
_NO_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json by their names, for the tokenizer that a model's metadata describes.

    Raises:
        ModelFileError: keys are missing or contradict each other, or the folder's own file cannot be read.
        UnsupportedModelError: a tokenizer that edgelm does not know, or that a tokenizer.json cannot describe.
    """
    path = metadata.get(TOKENIZER_JSON)
    if path is not None:
        return _copied(Path(path), metadata)
    parts = ggml_tokenizer(metadata)
    specials = sorted(special_tokens(parts.vocabulary, metadata), key=lambda special: special.token)
    added = {special.token: _added_token(special) for special in specials}
    config = _config(parts, metadata) | {"added_tokens_decoder": {str(token): entry for token, entry in added.items()}}
    return {TOKENIZER_FILE: _encode(_tokenizer(parts, metadata, added)), CONFIG_FILE: _encode(config, indent=1)}


def _encode(value: dict[str, Any], indent: int | None = None) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent).encode()
    except UnicodeEncodeError as error:
        raise UnsupportedModelError(
            f"a tokenizer.json cannot hold {error.object[error.start : error.end]!r:.60}, part of a token that is no valid UTF-8; "
            "edgelm runs the model without one"
        ) from None


# -- tokenizer.json --------------------------------------------------------------------------------------------------------------------


def _tokenizer(parts: TokenizerParts, metadata: Mapping[str, Any], added: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    kind = _byte_pair(parts, metadata) if parts.vocabulary.byte_level else _sentence_piece(parts, metadata)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, **entry} for token, entry in added.items()],
        **kind,
    }


def _added_token(special: SpecialToken) -> dict[str, Any]:
    return {
        "content": special.text.decode("utf-8", "surrogateescape"),
        "single_word": False,
        "lstrip": special.strip_left,
        "rstrip": special.strip_right,
        "normalized": False,
        "special": not special.always,
    }


def _byte_pair(parts: TokenizerParts, metadata: Mapping[str, Any]) -> dict[str, Any]:
    pre_tokenizer = find_pre_tokenizer(metadata.get("tokenizer.ggml.pre", ""))
    merges = list(dict.fromkeys(read_merges(metadata)))
    _check_merges(merges, parts.vocabulary)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer_json(pre_tokenizer),
        "post_processor": _around(parts) or byte_level,
        "decoder": byte_level,
        "model": _model(parts.vocabulary, merges, ignore_merges=pre_tokenizer.ignore_merges),
    }


def _check_merges(merges: Iterable[tuple[str, str]], vocabulary: Vocabulary) -> None:
    """Refuse what the format has no place for: merges by way of a text that is no token."""
    for left, right in merges:
        missing = next((text for text in (left, right, left + right) if text not in vocabulary.ids), None)
        if missing is not None:
            raise UnsupportedModelError(
                f"a tokenizer.json cannot hold the merge {left!r:.60} + {right!r:.60}, as {missing!r:.60} is no token; "
                "edgelm runs the model without one"
            )


def _sentence_piece(parts: TokenizerParts, metadata: Mapping[str, Any]) -> dict[str, Any]:
    vocabulary = parts.vocabulary
    if metadata.get("tokenizer.ggml.model") != "llama":
        raise UnsupportedModelError(
            f"edgelm writes no tokenizer.json for vocabularies of the kind {metadata.get('tokenizer.ggml.model')!r:.60}; edgelm runs the "
            "model without one"
        )
    n_vocab = len(vocabulary.texts)
    unknown = token_id(metadata, "unknown_token_id", n_vocab, 0)
    has_bytes = all(f"<0x{byte:02X}>" in vocabulary.ids for byte in range(256))
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    prefix = {"type": "Prepend", "prepend": SPACE_MARK}
    spaces = {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [prefix, marks]} if parts.space_prefix else marks,
        "pre_tokenizer": None if parts.space_prefix else _NO_SPLIT,
        "post_processor": _around(parts),
        "decoder": {
            "type": "Sequence",
            "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *([strip] if parts.space_prefix else [])],
        },
        "model": _model(
            vocabulary,
            ranked_merges(vocabulary, read_scores(metadata, n_vocab)),
            byte_fallback=has_bytes,
            unk_token=None if unknown is None else vocabulary.texts[unknown],
        ),
    }


def ranked_merges(vocabulary: Vocabulary, scores: NDArray[np.float32]) -> list[tuple[str, str]]:
    """All pairs of tokens whose union is a token, the union of the highest score first.

    Of equal scores the lower token comes first; of one union, the pair whose left token, then whose right token is lower.
    """
    ids = vocabulary.ids
    merges: list[tuple[str, str]] = []
    for token in np.argsort(-scores, kind="stable").tolist():
        text = vocabulary.texts[token]
        pairs = ((ids.get(text[:at]), ids.get(text[at:])) for at in range(1, len(text)))
        found = sorted((left, right) for left, right in pairs if left is not None and right is not None)
        merges += [(vocabulary.texts[left], vocabulary.texts[right]) for left, right in found]
    return merges


def _model(
    vocabulary: Vocabulary,
    merges: list[tuple[str, str]],
    *,
    ignore_merges: bool = False,
    byte_fallback: bool = False,
    unk_token: str | None = None,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary.ids,
        "merges": merges,
    }


def _around(parts: TokenizerParts) -> dict[str, Any] | None:
    """The post-processor that puts tokens around a text; None where there are none."""
    texts = parts.vocabulary.texts
    tokens = {texts[token]: token for token in (*parts.before, *parts.after)}
    if not tokens:
        return None

    def template(sequence: str, kind: int) -> list[dict[str, Any]]:
        before, after = (
            [{"SpecialToken": {"id": texts[token], "type_id": kind}} for token in side] for side in (parts.before, parts.after)
        )
        return [*before, {"Sequence": {"id": sequence, "type_id": kind}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": [*template("A", 0), *template("B", 1)],
        "special_tokens": {text: {"id": text, "ids": [token], "tokens": [text]} for text, token in tokens.items()},
    }


# -- tokenizer_config.json -------------------------------------------------------------------------------------------------------------


def _config(parts: TokenizerParts, metadata: Mapping[str, Any]) -> dict[str, Any]:
    texts = parts.vocabulary.texts

    def text(token: int | None) -> str | None:
        return None if token is None else texts[token]

    n_vocab = len(texts)
    unknown = token_id(metadata, "unknown_token_id", n_vocab, None if parts.vocabulary.byte_level else 0)
    values: dict[str, Any] = {
        "tokenizer_class": _TOKENIZER_CLASS,
        "add_bos_token": bool(parts.before),
        "add_eos_token": bool(parts.after),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": text(parts.endings.bos_id),
        "eos_token": text(parts.endings.eos_id),
        "unk_token": text(unknown),
        "pad_token": text(token_id(metadata, "padding_token_id", n_vocab, parts.endings.eos_id)),
    }
    n_ctx = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return values | ({"model_max_length": n_ctx} if isinstance(n_ctx, int) else {}) | _chat_template(metadata)


def _chat_template(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The template; where there are several, a list with their names."""
    default = metadata.get(_TEMPLATE)
    named = {key.removeprefix(f"{_TEMPLATE}."): value for key, value in metadata.items() if key.startswith(f"{_TEMPLATE}.")}
    if not named:
        return {} if default is None else {"chat_template": default}
    templates = ({} if default is None else {"default": default}) | named
    return {"chat_template": [{"name": name, "template": template} for name, template in templates.items()]}


# -- a Hugging Face folder's own files -------------------------------------------------------------------------------------------------


def _copied(path: Path, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    config_path = path.with_name(CONFIG_FILE)
    try:
        tokenizer = path.read_bytes()
        config = json.loads(config_path.read_bytes()) if config_path.exists() else {}
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path.parent}: the tokenizer's files cannot be read ({error}); fetch the model again") from error
    if not isinstance(config, dict):
        raise ModelFileError(f"{config_path}: not a JSON object; fetch the model again")
    # The template may be in a file of its own, which is not copied.
    return {TOKENIZER_FILE: tokenizer, CONFIG_FILE: _encode({"tokenizer_class": _TOKENIZER_CLASS} | config | _chat_template(metadata), 1)}
