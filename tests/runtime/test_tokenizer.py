"""Tokenizers of real models, against llama.cpp."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgelm.errors import InvalidRequestError, ModelFileError, UnsupportedModelError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.runtime.tokenizer import Tokenizer
from tests.hard_text import BYTES, PIECES, TEXTS
from tests.llama_vocab import LlamaVocab, llama_survives, llama_vocab

Pair = tuple[Tokenizer, LlamaVocab]
relaxed = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.differing_executors])


@pytest.fixture(scope="module", params=["smollm2_path", "gemma3_path"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    path: Path = request.getfixturevalue(request.param)
    with llama_vocab(path) as oracle:
        yield Tokenizer.from_gguf(path), oracle


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(smollm2_path)


@pytest.fixture(scope="module")
def gemma3(gemma3_path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(gemma3_path)


def check(pair: Pair, text: str | bytes) -> None:
    tokenizer, oracle = pair
    for add_special in (False, True):
        for parse_special in (False, True):
            expected = oracle.encode(text, add_special, parse_special)
            assert tokenizer.encode(text, add_special, parse_special) == expected, (text, add_special, parse_special)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:20]))
def test_hard_text(pair: Pair, text: str) -> None:
    check(pair, text)


@pytest.mark.parametrize("data", BYTES, ids=lambda data: ascii(data[:12]))
def test_bytes_that_are_no_text(pair: Pair, data: bytes) -> None:
    check(pair, data)


def test_random_mixtures(pair: Pair) -> None:
    chance = random.Random(1)
    pieces = (*PIECES, "ing", "the", "<eos>", "<end_of_turn>", "  \n", "</", ">", "▁")
    for _ in range(400):
        check(pair, "".join(chance.choices(pieces, k=chance.randint(1, 40))))


@relaxed
@given(text=st.text())
def test_any_text(pair: Pair, text: str) -> None:
    check(pair, text)


@relaxed
@given(text=st.text(alphabet="aeh lst\n-=", max_size=60))
def test_repetitive_text(pair: Pair, text: str) -> None:
    check(pair, text)


@relaxed
@given(data=st.binary() | st.text(alphabet="▁ é漢👍", max_size=10).map(lambda text: text.encode()[1:-1]))
def test_any_bytes(pair: Pair, data: bytes) -> None:
    assume(llama_survives(data))
    check(pair, data)


def test_tokens_and_ends(pair: Pair) -> None:
    tokenizer, oracle = pair
    assert tokenizer.n_vocab == oracle.n_vocab
    assert tokenizer.eog_ids == oracle.end_of_generation()
    assert [tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab)] == [
        oracle.token_bytes(token) for token in range(oracle.n_vocab)
    ]


# SmolLM2 has no token for some control characters and some bytes of characters beyond U+3FFFF; as in llama.cpp they are lost.
@relaxed
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x04\x06\x13\x14\x16\x1d", max_codepoint=0x3FFFF)))
def test_decoding_gives_the_text_back(pair: Pair, text: str) -> None:
    tokenizer, _ = pair
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode_bytes(tokens) == text.encode()


def test_long_text(pair: Pair) -> None:
    text = "The quick brown fox (born 1987) doesn't jump\n\nover the lazy dog: 漢字 and déjà vu. " * 1200
    tokenizer, oracle = pair
    tokens = tokenizer.encode(text)
    assert tokens == oracle.encode(text)
    assert tokenizer.decode(tokens) == text


def test_text_beyond_unicode_counts_as_broken_bytes(smollm2: Tokenizer) -> None:
    assert smollm2.encode(b"\xf4\x90\x80\x80") == smollm2.encode("\ufffd" * 4)


def test_surrogates(smollm2: Tokenizer) -> None:
    assert smollm2.encode("a\udcff") == smollm2.encode(b"a\xff")
    assert smollm2.encode("\ud83d!") == smollm2.encode(b"\xed\xa0\xbd!")


def test_attributes_of_smollm2(smollm2: Tokenizer) -> None:
    assert (smollm2.bos_id, smollm2.eos_id, smollm2.add_bos, smollm2.add_eos) == (1, 2, False, False)
    assert smollm2.token_text(2) == "<|im_end|>"
    assert smollm2.is_special(2)
    assert not smollm2.is_special(smollm2.encode("the")[0])
    assert smollm2.token_text(smollm2.encode(" the")[0]) == "Ġthe"
    assert smollm2.decode([2, *smollm2.encode("x")]) == "<|im_end|>x"
    assert smollm2.decode([2, *smollm2.encode("x")], skip_special=True) == "x"


def test_attributes_of_gemma3(gemma3: Tokenizer) -> None:
    assert (gemma3.bos_id, gemma3.eos_id, gemma3.add_bos, gemma3.add_eos) == (2, 1, True, False)
    assert gemma3.encode("", add_special=True) == [2]
    # Without a token of its own a character is spelt in bytes, which streaming must be able to join.
    tokens = gemma3.encode("\U0001fae8\u1c89")
    assert b"".join(map(gemma3.token_bytes, tokens)).decode() == "\U0001fae8\u1c89"
    assert gemma3.decode(gemma3.encode("\u1c89")[:1]) == "\ufffd"


@pytest.mark.parametrize("token", [-1, 49152, 1.5, "a"])
def test_token_outside_the_vocabulary(smollm2: Tokenizer, token: Any) -> None:
    for call in (smollm2.token_bytes, smollm2.token_text, smollm2.is_special, lambda token: smollm2.decode([token])):
        with pytest.raises(InvalidRequestError, match="0 to 49151"):
            call(token)


def test_text_of_another_type(smollm2: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="not int"):
        smollm2.encode(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokenizer.ggml.model": None}, ModelFileError, "tokenizer.ggml.model is missing"),
        ({"tokenizer.ggml.model": "bert"}, UnsupportedModelError, "'bert'"),
        ({"tokenizer.ggml.pre": "qwen99"}, UnsupportedModelError, "'qwen99'.*llama-bpe"),
        ({"tokenizer.ggml.pre": 7}, ModelFileError, "tokenizer.ggml.pre"),
        ({"tokenizer.ggml.tokens": None}, ModelFileError, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, ModelFileError, "twice"),
        ({"tokenizer.ggml.token_type": np.ones(3, np.int32)}, ModelFileError, "token_type must be 49152"),
        ({"tokenizer.ggml.token_type": np.full(49152, 6, np.int32)}, ModelFileError, "marked as a byte"),
        ({"tokenizer.ggml.merges": None}, ModelFileError, "tokenizer.ggml.merges is missing"),
        ({"tokenizer.ggml.merges": ["ab"]}, ModelFileError, "no pair"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, ModelFileError, "not true or false"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": np.ones(3)}, ModelFileError, "scores must be 49152"),
    ],
)
def test_metadata_that_makes_no_sense(smollm2_path: Path, change: dict[str, object], error: type[Exception], message: str) -> None:
    with GGUFFile(smollm2_path) as file:
        metadata = {key: value for key, value in {**file.metadata, **change}.items() if value is not None}
    with pytest.raises(error, match=message):
        Tokenizer.from_metadata(metadata)


def test_wanted_bos_that_does_not_exist() -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.add_bos_token": True,
    }
    with pytest.raises(ModelFileError, match="names no such token"):
        Tokenizer.from_metadata(metadata)
