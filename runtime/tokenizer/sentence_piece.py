"""SentencePiece's byte-pair encoding: merge the two neighbours whose union is the token of the highest score, until none is left.

Of equal scores the leftmost is merged. The `tokenizers` library can only rank pairs, no two alike, so it would go by the order of tokens
there; and to build it with all pairs that make up some token takes seconds for a vocabulary of 262,144. Merging by score needs no pairs,
so nothing is built at all, and text falls into short words that repeat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelFileError
from edgelm.runtime.tokenizer.utf8 import split_by_lead_bytes
from edgelm.runtime.tokenizer.vocabulary import SPACE_MARK, Vocabulary, raw_bytes

# Words whose tokens are remembered, and the longest of them; text repeats its words.
_REMEMBERED_WORDS = 50_000
_LONGEST_REMEMBERED = 32


def read_scores(metadata: Mapping[str, Any], n_vocab: int) -> NDArray[np.float32]:
    """Scores, float32 [n_vocab], from tokenizer.ggml.scores; zeros where the file has none.

    Raises:
        ModelFileError: no numbers, or fewer than tokens.
    """
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None:
        return np.zeros(n_vocab, np.float32)
    if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "iuf" or len(scores) < n_vocab:
        raise ModelFileError(
            f"tokenizer.ggml.scores must be {n_vocab} numbers, one for each token; the file is damaged, fetch or convert it again"
        )
    return scores[:n_vocab].astype(np.float32)


class SentencePieceEncoder:
    """Text without special tokens to tokens; characters that are no token become byte tokens."""

    def __init__(self, vocabulary: Vocabulary, scores: NDArray[np.float32], unknown_id: int | None) -> None:
        self._ids = vocabulary.ids
        self._scores = scores
        self._byte_tokens = [_byte_token(self._ids, byte, unknown_id) for byte in range(256)]
        self._word_start = _word_start(vocabulary)
        self._remembered: dict[str, list[int]] = {}

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of the text, which need not be valid UTF-8."""
        marked = text.replace(b" ", SPACE_MARK.encode())
        try:
            words = self._word_start.split(marked.decode())
        except UnicodeDecodeError:
            return self._merge(split_by_lead_bytes(marked))
        return [token for word in words for token in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        tokens = self._remembered.get(word)
        if tokens is None:
            tokens = self._merge(list(word))
            if len(word) <= _LONGEST_REMEMBERED and len(self._remembered) < _REMEMBERED_WORDS:
                self._remembered[word] = tokens
        return tokens

    def _merge(self, pieces: list[str]) -> list[int]:
        """Merge neighbours, best score first, leftmost first among equals. A piece merged into its left neighbour becomes empty."""
        ids, scores = self._ids, self._scores
        before, after = list(range(-1, len(pieces) - 1)), [*range(1, len(pieces)), -1]

        def candidate(left: int, right: int) -> tuple[float, int, int, int] | None:
            union = pieces[left] + pieces[right]
            token = ids.get(union)
            return None if token is None else (-float(scores[token]), left, right, len(union))

        queue = [found for left in range(len(pieces) - 1) if (found := candidate(left, left + 1))]
        heapify(queue)
        while queue:
            _, left, right, length = heappop(queue)
            if not pieces[left] or not pieces[right] or len(pieces[left]) + len(pieces[right]) != length:
                continue
            pieces[left] += pieces[right]
            pieces[right] = ""
            following = after[left] = after[right]
            if following >= 0:
                before[following] = left
                if found := candidate(left, following):
                    heappush(queue, found)
            if before[left] >= 0 and (found := candidate(before[left], left)):
                heappush(queue, found)
        return [token for piece in pieces if piece for token in self._tokens_of(piece)]

    def _tokens_of(self, piece: str) -> list[int]:
        token = self._ids.get(piece)
        return [self._byte_tokens[byte] for byte in raw_bytes(piece)] if token is None else [token]


def _byte_token(ids: Mapping[str, int], byte: int, unknown_id: int | None) -> int:
    token = ids.get(f"<0x{byte:02X}>", ids.get(bytes([byte]).decode("utf-8", "surrogateescape"), unknown_id))
    if token is None:
        raise ModelFileError(
            f"the vocabulary has neither a token for the byte {byte} nor an unknown token; the file is damaged, convert it again"
        )
    return token


def _word_start(vocabulary: Vocabulary) -> re.Pattern[str]:
    """Where text may be cut without a change in its tokens: before the space mark, unless some token has what comes before it there."""
    with_mark_inside = (text for text in vocabulary.texts if text.rfind(SPACE_MARK) > 0)
    joined = {SPACE_MARK} | {text[at - 1] for text in with_mark_inside for at in range(1, len(text)) if text[at] == SPACE_MARK}
    return re.compile(f"(?<=[^{re.escape(''.join(sorted(joined)))}])(?={SPACE_MARK})", re.DOTALL)
