"""Special tokens within text: cutting them out before the rest is tokenized."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgelm.runtime.tokenizer.vocabulary import Kind, Vocabulary, raw_bytes

_SPACES = b" \t\n\v\f\r"
# Models whose tokenizer drops white space beside special tokens. The files do not say so; llama.cpp goes by these names.
_PHI3_NAMES = ("phi-3", "phi3")
_PHI3_KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")
_MASK_TOKEN = {"jina-v2-de": "<mask>", "jina-v2-es": "<mask>", "jina-v2-code": "<mask>"}


@dataclass(frozen=True)
class SpecialToken:
    """A token that is found in text before anything else.

    Attributes:
        always: found even where special tokens are to be read as plain text (user-defined tokens).
        strip_left, strip_right: it swallows the white space before, or after it.
    """

    text: bytes
    token: int
    always: bool
    strip_left: bool = False
    strip_right: bool = False

    def cut(self, part: bytes) -> Iterator[bytes | int]:
        """The part with each occurrence of the token replaced by its number."""
        at = 0
        while (found := part.find(self.text, at)) >= 0:
            left = part[at:found].rstrip(_SPACES) if self.strip_left else part[at:found]
            if left:
                yield left
            yield self.token
            at = found + len(self.text)
            while self.strip_right and at < len(part) and part[at] in _SPACES:
                at += 1
        if at < len(part):
            yield part[at:]


class SpecialTokens:
    """All special tokens of a vocabulary.

    They are sought longest first, each in all of the text, as llama.cpp does; a leftmost-first search would differ where two overlap.
    """

    def __init__(self, tokens: Iterable[SpecialToken]) -> None:
        self._by_start: dict[bytes, list[SpecialToken]] = defaultdict(list)
        for token in tokens:
            self._by_start[token.text[:2]].append(token)

    def __iter__(self) -> Iterator[SpecialToken]:
        return (token for group in self._by_start.values() for token in group)

    def split(self, text: bytes, parse_special: bool) -> list[bytes | int]:
        """The text in parts: tokens, and what lies between them."""
        parts: list[bytes | int] = [text] if text else []
        for token in self._within(text, parse_special):
            parts = [piece for part in parts for piece in ((part,) if isinstance(part, int) else token.cut(part))]
        return parts

    def _within(self, text: bytes, parse_special: bool) -> list[SpecialToken]:
        """Those that may occur in the text, longest first. Few starts are there, so that thousands of unused tokens cost nothing."""
        tokens = (token for start, group in self._by_start.items() if start in text for token in group)
        found = (token for token in tokens if (parse_special or token.always) and token.text in text)
        return sorted(found, key=lambda token: -len(token.text))


def special_tokens(vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> SpecialTokens:
    """The special tokens of a GGUF file's vocabulary: control, unknown and user-defined ones."""
    is_phi3 = any(name in str(metadata.get("general.name", "")).lower() for name in _PHI3_NAMES)
    mask = _MASK_TOKEN.get(str(metadata.get("tokenizer.ggml.pre")))
    special = np.flatnonzero(vocabulary.kinds & (Kind.CONTROL | Kind.UNKNOWN | Kind.USER_DEFINED))
    return SpecialTokens(
        SpecialToken(
            text=raw_bytes(text),
            token=token,
            always=not vocabulary.is_special(token),
            strip_left=text == mask,
            strip_right=is_phi3 and text not in _PHI3_KEEPS_SPACE,
        )
        for token, text in ((token, vocabulary.texts[token]) for token in special.tolist())
    )
