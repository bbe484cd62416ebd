"""The tokens of a model: their texts, kinds and bytes, and which of them have a special part to play."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


# Plain integers: flags take microseconds to combine, and there are hundreds of thousands of tokens.
_SPECIAL = int(Kind.CONTROL | Kind.UNKNOWN)
_LITERAL = int(_SPECIAL | Kind.USER_DEFINED)
_NORMAL, _BYTE = int(Kind.NORMAL), int(Kind.BYTE)
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
        return bool(self.kinds[token] & _SPECIAL)

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to the text. Special tokens give their name."""
        kind, text = int(self.kinds[token]), self.texts[token]
        if kind & _LITERAL:
            return raw_bytes(text)
        if kind & _NORMAL:
            return _byte_level_bytes(text) if self.byte_level else raw_bytes(text.replace(SPACE_MARK, " "))
        if kind & _BYTE:
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
