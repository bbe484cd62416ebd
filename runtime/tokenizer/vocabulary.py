"""The tokens of a model: their texts, kinds and bytes, and which of them have a special part to play."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelFileError

SPACE_MARK = "▁"


class Kind(IntFlag):
    """What a token is; a control token may have a second kind, as llama.cpp adds CONTROL to tokens that look it."""

    UNKNOWN = 1
    UNUSED = 2
    NORMAL = 4
    CONTROL = 8
    USER_DEFINED = 16
    BYTE = 32


_KIND_OF_TYPE = {1: Kind.NORMAL, 2: Kind.UNKNOWN, 3: Kind.CONTROL, 4: Kind.USER_DEFINED, 5: Kind.UNUSED, 6: Kind.BYTE}


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself where it is printable Latin-1, otherwise one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + rank) for rank, byte in enumerate(others)}


BYTE_TO_CHARACTER = _byte_alphabet()
_CHARACTER_TO_BYTE = {ord(character): byte for byte, character in BYTE_TO_CHARACTER.items()}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        texts: text of each token as the model file spells it; bytes that are not UTF-8 are lone surrogates (surrogateescape).
        kinds: Kind of each token, uint8 [n_vocab].
        byte_level: normal tokens are spelt in GPT-2's byte alphabet; otherwise in UTF-8 with "▁" for a space.
        ids: token of each text.
    """

    texts: Sequence[str]
    kinds: NDArray[np.uint8]
    byte_level: bool
    ids: dict[str, int]

    def is_special(self, token: int) -> bool:
        """Whether the token stands for no text: control and unknown tokens."""
        return bool(self.kinds[token] & (Kind.CONTROL | Kind.UNKNOWN))

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to the text. Special tokens give their name."""
        kind, text = int(self.kinds[token]), self.texts[token]
        if kind & (Kind.CONTROL | Kind.UNKNOWN | Kind.USER_DEFINED):
            return raw_bytes(text)
        if kind & Kind.NORMAL:
            return _byte_level_bytes(text) if self.byte_level else raw_bytes(text.replace(SPACE_MARK, " "))
        if kind & Kind.BYTE:
            return bytes([int(text[3:5], 16)])
        return b""


def raw_bytes(text: str) -> bytes:
    """UTF-8 of a text in which lone surrogates stand for bytes."""
    return text.encode("utf-8", "surrogateescape")


def _byte_level_bytes(text: str) -> bytes:
    try:
        return text.translate(_CHARACTER_TO_BYTE).encode("latin-1")
    except UnicodeEncodeError:
        # Not in the byte alphabet, so it can only be meant literally.
        return raw_bytes(text)


def read_vocabulary(metadata: Mapping[str, Any], byte_level: bool) -> Vocabulary:
    """The tokens under tokenizer.ggml.tokens, with their kinds under tokenizer.ggml.token_type.

    Raises:
        ModelFileError: they are missing, of another type, of different lengths, or a text comes twice.
    """
    texts = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(texts, list) or not texts:
        raise ModelFileError("tokenizer.ggml.tokens is missing or no list of texts; the file has no vocabulary, use another file")
    if "" in texts:
        texts = [text or f"[EMPTY_{token}]" for token, text in enumerate(texts)]
    ids = dict(zip(texts, range(len(texts)), strict=True))
    if len(ids) < len(texts):
        raise ModelFileError("tokenizer.ggml.tokens has the same text twice; the file is damaged, fetch or convert it again")
    kinds = _read_kinds(metadata, texts)
    return Vocabulary(texts, kinds, byte_level, ids)


def _read_kinds(metadata: Mapping[str, Any], texts: Sequence[str]) -> NDArray[np.uint8]:
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return np.full(len(texts), Kind.NORMAL, np.uint8)
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) < len(texts):
        raise ModelFileError(
            f"tokenizer.ggml.token_type must be {len(texts)} whole numbers, one for each token; the file is damaged, convert it again"
        )
    kinds = np.zeros(len(texts), np.uint8)
    for number, kind in _KIND_OF_TYPE.items():
        kinds[types[: len(texts)] == number] = kind
    for token in np.flatnonzero(kinds & Kind.BYTE).tolist():
        if not re.fullmatch("<0x[0-9A-Fa-f]{2}>", texts[token]):
            raise ModelFileError(f"token {token}, {texts[token]!r:.60}, is marked as a byte but not spelt <0xNN>; the file is damaged")
    return kinds


# Texts by which llama.cpp knows tokens that the file does not point out, in the order of preference.
_END_OF_TURN = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]"),
    *("<｜end▁of▁sentence｜>", "<end_of_utterance>"),
)
_END_OF_MESSAGE = ("<|eom_id|>",)
_FILL_IN = {
    "fim_pre": (
        *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>"),
    ),
    "fim_suf": (*("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>"),),
    "fim_mid": (*("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>"),),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_END_OF_GENERATION = (
    *_END_OF_TURN,
    *_END_OF_MESSAGE,
    *("<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "[EOS]", "<eos>", "<turn|>", "<|tool_response>", "[e~["),
)
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
_OLD_KEYS = {"fim_pre": "prefix_token_id", "fim_suf": "suffix_token_id", "fim_mid": "middle_token_id"}


@dataclass(frozen=True)
class Endings:
    """Tokens that end generation."""

    bos_id: int | None
    eos_id: int | None
    eog_ids: frozenset[int]


def token_id(metadata: Mapping[str, Any], name: str, n_vocab: int, default: int | None = None) -> int | None:
    """The token that tokenizer.ggml.<name> points out; the default where the key is missing or points outside the vocabulary."""
    value = metadata.get(f"tokenizer.ggml.{name}")
    for candidate in (value, default):
        if isinstance(candidate, int) and not isinstance(candidate, bool) and 0 <= candidate < n_vocab:
            return candidate
    return None


def find_special_tokens(
    vocabulary: Vocabulary, metadata: Mapping[str, Any], default_bos: int | None, default_eos: int | None
) -> tuple[Vocabulary, Endings]:
    """Find the tokens that begin and end text, as llama.cpp does: by their keys, and by their well-known texts.

    Returns the vocabulary with the kinds corrected (a token that looks like a control token is one), and the endings.
    """
    ids, n_vocab, kinds = vocabulary.ids, len(vocabulary.texts), vocabulary.kinds.copy()
    bos = token_id(metadata, "bos_token_id", n_vocab, default_bos)
    eos = token_id(metadata, "eos_token_id", n_vocab, default_eos)
    roles: dict[str, int | None] = {}
    for role, texts in {"eot": _END_OF_TURN, "eom": _END_OF_MESSAGE, **_FILL_IN}.items():
        roles[role] = token_id(metadata, f"{role}_token_id", n_vocab)
        if role in _OLD_KEYS:
            roles[role] = token_id(metadata, _OLD_KEYS[role], n_vocab, roles[role])
        if roles[role] is None:
            roles[role] = next((ids[text] for text in texts if text in ids), None)
            if roles[role] is not None:
                kinds[roles[role]] |= Kind.CONTROL
    ends = {ids[text] for text in _END_OF_GENERATION if text in ids}
    for token in ends:
        kinds[token] |= Kind.CONTROL
    for token in (ids[text] for text in _ALWAYS_SHOWN if text in ids):
        kinds[token] = Kind.USER_DEFINED
    named = (eos, roles["eot"], roles["eom"], roles["fim_pad"], roles["fim_rep"], roles["fim_sep"])
    ends |= {token for token in named if token is not None}
    _correct_ends(ends, kinds, ids)
    return replace(vocabulary, kinds=kinds), Endings(bos, eos, frozenset(ends))


def _correct_ends(ends: set[int], kinds: NDArray[np.uint8], ids: Mapping[str, int]) -> None:
    """Take back two guesses that are wrong for models which use the same texts otherwise (gpt-oss and Solar; Gemma 4)."""
    texts = {text for text in _END_OF_GENERATION if ids.get(text) in ends}
    calls = bool(texts & {"<|call|>", "<|calls|>"})
    if "<|end|>" in texts and calls and texts & {"<|return|>", "<|flush|>"}:
        ends.discard(ids["<|end|>"])
        kinds[ids["<|end|>"]] = Kind.USER_DEFINED
    if {"<|tool_response>", "</s>"} <= texts:
        ends.discard(ids["</s>"])
        kinds[ids["</s>"]] = Kind.NORMAL
