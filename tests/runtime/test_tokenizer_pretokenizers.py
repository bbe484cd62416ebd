"""Every pre-tokenizer against llama.cpp, on a vocabulary made to show where words end."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edgelm.errors import UnsupportedModelError
from edgelm.runtime.pretokenizers import PRE_TOKENIZERS, PreTokenizer, find_pre_tokenizer
from edgelm.runtime.tokenizer import Tokenizer
from edgelm.runtime.tokenizer.vocabulary import BYTE_TO_CHARACTER
from tests.hard_text import BYTES, PIECES, TEXTS
from tests.llama_vocab import llama_vocab, write_vocabulary

BYTE_LEVEL = [name for name, row in PRE_TOKENIZERS.items() if row.byte_level]
ROWS = {row.names[0]: row for row in PRE_TOKENIZERS.values()}
MARKED = [name for name, row in PRE_TOKENIZERS.items() if not row.byte_level]
# Few kinds, so that words of several pieces are common.
FEW_PIECES = ("a", "B", " ", "\n", "1", "é", "'s", "漢", "!", "\u0301")


@pytest.fixture(scope="module")
def texts() -> list[str | bytes]:
    chance = random.Random(5)
    mixed = ["".join(chance.choices(PIECES, k=chance.randint(1, 300))) for _ in range(60)]
    simple = ["".join(chance.choices(FEW_PIECES, k=chance.randint(1, 100))) for _ in range(60)]
    return [*TEXTS, *BYTES, *mixed, *simple]


def write_pairs(path: Path, pre: str) -> Path:
    """All bytes, and half of the pairs of those bytes that occur: a pair that could be one token and is two shows where a word ends."""
    chance = random.Random(pre)
    used = sorted({BYTE_TO_CHARACTER[byte] for piece in PIECES for byte in piece.encode()})
    pairs = chance.sample([(left, right) for left in used for right in used], len(used) ** 2 // 2)
    tokens = [*BYTE_TO_CHARACTER.values(), *(left + right for left, right in pairs), "<|im_end|>"]
    last = len(tokens) - 1
    types = [1] * last + [3]
    return write_vocabulary(path, "gpt2", tokens, types, merges=pairs, pre=pre, bos_token_id=last, eos_token_id=last)


@pytest.mark.parametrize("name", BYTE_LEVEL, ids=lambda name: name or "none")
def test_words_end_where_llama_cpp_ends_them(name: str, texts: list[str | bytes], tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.gguf", name)
    tokenizer = Tokenizer.from_gguf(path)
    with llama_vocab(path) as oracle:
        for text in texts:
            assert tokenizer.encode(text, add_special=True) == oracle.encode(text, add_special=True), text
        assert tokenizer.eog_ids == oracle.end_of_generation()


@pytest.mark.parametrize("name", MARKED)
def test_vocabularies_with_a_space_mark(name: str, texts: list[str | bytes], tmp_path: Path) -> None:
    chance = random.Random(name)
    characters = [*"abcdeBZ12.!▁é漢\n", "'"]
    pairs = [(left, right) for left in characters for right in characters if ("\n" in (left, right)) == (left == right == "\n")]
    chance.shuffle(pairs)
    words = [left + right for left, right in pairs]
    longer = chance.sample([(left, right) for left in words for right in words if "\n" not in left + right], 400)
    spelt = dict.fromkeys(left + right for left, right in longer)
    tokens = ["<pad>", "<eos>", "<bos>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters, *words, *spelt, "\n" * 4]
    types = [3] * 3 + [6] * 256 + [1] * (len(tokens) - 259)
    model = "gemma4" if name == "gemma4" else "gpt2"
    path = write_vocabulary(
        tmp_path / "marked.gguf", model, tokens, types, merges=[*pairs, *longer], pre=name, bos_token_id=2, eos_token_id=1
    )
    tokenizer = Tokenizer.from_gguf(path)
    with llama_vocab(path) as oracle:
        for text in texts:
            if isinstance(text, str):
                assert tokenizer.encode(text, add_special=True) == oracle.encode(text, add_special=True), text
        pieces = [oracle.token_bytes(token) for token in range(oracle.n_vocab)]
    assert [tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab)] == pieces


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_words_join_to_the_text(row: PreTokenizer, texts: list[str | bytes]) -> None:
    for text in texts:
        if isinstance(text, str):
            assert "".join(row.split(text)) == text


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_work_does_not_grow_with_the_square_of_the_text(row: PreTokenizer) -> None:
    # If it did, each of these would take minutes.
    for piece in ("a", "A", " ", "\n", "1", "!", "é", "漢", "\u0301", "'s", " a", "1a", " \n", "A1!", "'"):
        words = row.split(piece * 20_000 + "x")
        assert sum(map(len, words)) == 20_000 * len(piece) + 1


def test_name_that_nobody_knows() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'nonesuch'.*llama-bpe.*qwen2"):
        find_pre_tokenizer("nonesuch")
