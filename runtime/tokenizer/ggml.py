"""Tokenizers described by the tokenizer.ggml.* keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.runtime.pretokenizers import find_pre_tokenizer
from edgelm.runtime.tokenizer.byte_pair import BytePairEncoder, read_merges
from edgelm.runtime.tokenizer.endings import find_special_tokens, token_id
from edgelm.runtime.tokenizer.parts import TokenizerParts
from edgelm.runtime.tokenizer.sentence_piece import SentencePieceEncoder, read_scores
from edgelm.runtime.tokenizer.special_tokens import SpecialTokens, special_tokens
from edgelm.runtime.tokenizer.vocabulary import read_vocabulary

# Of the byte-pair tokenizers, these have no first token unless the file names one.
_NO_BOS = ("chatglm-bpe", "glm4")


@dataclass(frozen=True)
class GGMLEncoder:
    """Text to tokens: special tokens first, then what lies between them.

    Attributes:
        space_prefix: a space is put before the text and before text that follows a special token.
    """

    specials: SpecialTokens
    encode_text: Callable[[bytes], list[int]]
    space_prefix: bool

    def __call__(self, text: bytes, parse_special: bool) -> list[int]:
        tokens: list[int] = []
        # Two texts never follow each other, so each text is the first or follows a special token.
        prefix = b" " if self.space_prefix else b""
        for part in self.specials.split(text, parse_special):
            if isinstance(part, int):
                tokens.append(part)
            else:
                tokens += self.encode_text(prefix + part)
        return tokens


def ggml_tokenizer(metadata: Mapping[str, Any]) -> TokenizerParts:
    """The tokenizer that the metadata of a GGUF file describes, with llama.cpp's defaults for what it leaves out.

    Raises:
        ModelFileError: keys are missing, of a wrong type, or contradict each other.
        UnsupportedModelError: a kind of tokenizer, or a pre-tokenizer, that edgelm does not know.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model == "llama":
        return _sentence_piece(metadata)
    if model in ("gpt2", "gemma4"):
        return _byte_pair(metadata, "gemma4" if model == "gemma4" else metadata.get("tokenizer.ggml.pre", ""))
    if model is None:
        raise ModelFileError(
            "tokenizer.ggml.model is missing (or tokenizer.json, in a folder): the model has no tokenizer; "
            "fetch it whole, or use another one"
        )
    raise UnsupportedModelError(
        f"tokenizer.ggml.model is {model!r:.60}; edgelm knows gpt2 (byte-pair encoding), llama (SentencePiece) and gemma4: "
        "use a model with one of these"
    )


def _byte_pair(metadata: Mapping[str, Any], pre: object) -> TokenizerParts:
    if not isinstance(pre, str):
        raise ModelFileError(f"tokenizer.ggml.pre is {pre!r:.60}, not a text; the file is damaged, fetch or convert it again")
    pre_tokenizer = find_pre_tokenizer(pre)
    vocabulary = read_vocabulary(metadata, pre_tokenizer.byte_level)
    default_bos = None if pre in _NO_BOS or not pre_tokenizer.byte_level else 11
    vocabulary, endings = find_special_tokens(vocabulary, metadata, default_bos, 11 if pre_tokenizer.byte_level else None)
    encode_text = BytePairEncoder(vocabulary, read_merges(metadata), pre_tokenizer)
    encoder = GGMLEncoder(special_tokens(vocabulary, metadata), encode_text, space_prefix=False)
    add_bos = _flag(metadata, "add_bos_token", pre_tokenizer.add_bos)
    return TokenizerParts(
        vocabulary,
        encoder,
        endings,
        # Gemma 4's files say no, but the model wants it.
        before=_addition("add_bos_token", add_bos or pre_tokenizer.whole_newlines, endings.bos_id),
        after=_addition("add_eos_token", _flag(metadata, "add_eos_token", False), endings.eos_id),
        space_prefix=False,
    )


def _sentence_piece(metadata: Mapping[str, Any]) -> TokenizerParts:
    vocabulary = read_vocabulary(metadata, byte_level=False)
    n_vocab = len(vocabulary.texts)
    vocabulary, endings = find_special_tokens(vocabulary, metadata, 1, 2)
    encode_text = SentencePieceEncoder(vocabulary, read_scores(metadata, n_vocab), token_id(metadata, "unknown_token_id", n_vocab, 0))
    space_prefix = _flag(metadata, "add_space_prefix", True)
    return TokenizerParts(
        vocabulary,
        GGMLEncoder(special_tokens(vocabulary, metadata), encode_text, space_prefix),
        endings,
        before=_addition("add_bos_token", _flag(metadata, "add_bos_token", True), endings.bos_id),
        after=_addition("add_eos_token", _flag(metadata, "add_eos_token", False), endings.eos_id),
        space_prefix=space_prefix,
    )


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise ModelFileError(f"tokenizer.ggml.{name} is {value!r:.60}, not true or false; the file is damaged, fetch or convert it again")
    return value


def _addition(name: str, wanted: bool, token: int | None) -> tuple[int, ...]:
    if not wanted:
        return ()
    if token is None:
        raise ModelFileError(f"tokenizer.ggml.{name} is true, but the file names no such token; the file is damaged, convert it again")
    return (token,)
