"""Byte-pair encoding as GPT-2 does it: cut text into words, then merge pairs by rank within each. The merging is done by `tokenizers`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE

from edgelm.errors import ModelFileError
from edgelm.runtime.pretokenizers import PreTokenizer
from edgelm.runtime.tokenizer.utf8 import decode_leniently
from edgelm.runtime.tokenizer.vocabulary import BYTE_TO_CHARACTER, SPACE_MARK, Vocabulary, raw_bytes

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs in the order in which they are merged, from tokenizer.ggml.merges.

    Raises:
        ModelFileError: missing, no list of texts, or a text that is no pair.
    """
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ModelFileError("tokenizer.ggml.merges is missing or no list of texts; the file is damaged, fetch or convert it again")
    return [_pair(merge) for merge in merges]


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not (left and right):
        raise ModelFileError(f"tokenizer.ggml.merges holds {merge!r:.60}, which is no pair; the file is damaged, fetch or convert it again")
    return left, right


class BytePairEncoder:
    """Text without special tokens to tokens.

    Texts that merging may reach but which are no tokens get numbers beyond the vocabulary, and are spelt out at the end: that is what
    llama.cpp does with them, while `tokenizers` would refuse the merge or drop the character.
    """

    def __init__(self, vocabulary: Vocabulary, merges: Sequence[tuple[str, str]], pre_tokenizer: PreTokenizer) -> None:
        self._pre_tokenizer = pre_tokenizer
        self._ids = vocabulary.ids
        if not pre_tokenizer.byte_level:
            self._check_byte_tokens()
        missing = self._missing_texts(merges)
        self._spellings = [self._spell(text) for text in missing]
        numbers = self._ids | {text: len(self._ids) + rank for rank, text in enumerate(missing)} if missing else self._ids
        model = BPE(
            numbers,
            # Of a pair that comes twice, the first place counts.
            list(dict.fromkeys(merges)),
            ignore_merges=pre_tokenizer.ignore_merges,
            byte_fallback=not pre_tokenizer.byte_level,
        )
        self._merger = RustTokenizer(model)

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of the text; bytes that are not UTF-8 count as U+FFFD."""
        if self._pre_tokenizer.byte_level:
            return self._merge([_in_byte_alphabet(word) for word in self._pre_tokenizer.split(decode_leniently(text))])
        marked = decode_leniently(text.replace(b" ", SPACE_MARK.encode()))
        # Rust's texts hold no surrogates.
        lines = self._pre_tokenizer.split(_SURROGATE.sub("\ufffd", marked))
        return [token for line in lines for token in self._merge_line(line)]

    def _merge_line(self, line: str) -> list[int]:
        if self._pre_tokenizer.whole_newlines and line[0] == "\n" and line in self._ids:
            return [self._ids[line]]
        return self._merge([line])

    def _merge(self, words: list[str]) -> list[int]:
        tokens: list[int] = self._merger.encode(words, is_pretokenized=True, add_special_tokens=False).ids
        if not self._spellings:
            return tokens
        n_vocab = len(self._ids)
        return [part for token in tokens for part in ((token,) if token < n_vocab else self._spellings[token - n_vocab])]

    def _check_byte_tokens(self) -> None:
        for byte in range(256):
            if f"<0x{byte:02X}>" not in self._ids:
                raise ModelFileError(f"the vocabulary has no token <0x{byte:02X}>; the file is damaged, fetch or convert it again")

    def _missing_texts(self, merges: Sequence[tuple[str, str]]) -> list[str]:
        texts = {left for left, _ in merges} | {right for _, right in merges} | {left + right for left, right in merges}
        if self._pre_tokenizer.byte_level:
            texts |= set(BYTE_TO_CHARACTER.values())
        return sorted(texts - self._ids.keys())

    def _spell(self, text: str) -> list[int]:
        """A text that is no token: by its ASCII characters, as no token is part of a character (and by byte tokens where there are any)."""
        parts = text if self._pre_tokenizer.byte_level else [f"<0x{byte:02X}>" for byte in raw_bytes(text)]
        return [self._ids[part] for part in parts if part in self._ids and part.isascii()]


def _in_byte_alphabet(word: str) -> str:
    return word.encode("utf-8", "surrogatepass").decode("latin-1").translate(BYTE_TO_CHARACTER)
