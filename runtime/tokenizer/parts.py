"""What a tokenizer is made of, whichever file it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgelm.runtime.tokenizer.endings import Endings
from edgelm.runtime.tokenizer.vocabulary import Vocabulary

# Text, and whether special tokens within it are parsed, to tokens.
Encoder = Callable[[bytes, bool], list[int]]


@dataclass(frozen=True)
class TokenizerParts:
    """What a tokenizer is made of.

    Attributes:
        vocabulary: the tokens.
        encode: text to tokens.
        endings: the first and last tokens of texts and answers.
        before, after: tokens that the model wants around a text.
        space_prefix: encode puts a space before the text, so decoding takes one away.
    """

    vocabulary: Vocabulary
    encode: Encoder
    endings: Endings
    before: tuple[int, ...]
    after: tuple[int, ...]
    space_prefix: bool
