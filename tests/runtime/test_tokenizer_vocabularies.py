"""Vocabularies out of the ordinary, against llama.cpp."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from edgelm.errors import ModelFileError
from edgelm.runtime.tokenizer import Tokenizer, endings
from edgelm.runtime.tokenizer.vocabulary import BYTE_TO_CHARACTER
from tests.hard_text import BYTES
from tests.llama_vocab import llama_vocab, write_vocabulary

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTES_OF_SPM = [f"<0x{byte:02X}>" for byte in range(256)]
ALPHABET = list(BYTE_TO_CHARACTER.values())
# A file must have some; these bytes never meet in the texts.
NO_MERGES = [("÷", "÷")]


def agree(path: Path, texts: list[str] | list[bytes]) -> Tokenizer:
    """Check that tokens, bytes and ends are llama.cpp's."""
    tokenizer = Tokenizer.from_gguf(path)
    with llama_vocab(path) as oracle:
        for text, add_special, parse_special in itertools.product(texts, (False, True), (False, True)):
            tokens = tokenizer.encode(text, add_special, parse_special)
            assert tokens == oracle.encode(text, add_special, parse_special), (text, add_special, parse_special)
        assert tokenizer.eog_ids == oracle.end_of_generation()
        pieces = [oracle.token_bytes(token) for token in range(oracle.n_vocab)]
    assert [tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab)] == pieces
    return tokenizer


def write_sentence_piece(
    path: Path, pieces: list[str], scores: list[float], specials: dict[str, int] | None = None, **keys: object
) -> Path:
    specials = specials or {}
    tokens = ["<unk>", "<s>", "</s>", *BYTES_OF_SPM, *specials, *pieces]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *specials.values(), *[NORMAL] * len(pieces)]
    return write_vocabulary(path, "llama", tokens, types, scores=[0.0] * (259 + len(specials)) + scores, **keys)


def mixtures(alphabet: str | list[str], count: int, longest: int = 30, seed: int = 2) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices(alphabet, k=chance.randint(0, longest))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(6))
def test_merges_of_equal_score_go_from_the_left(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    words = {"".join(chance.choices("ab▁", k=chance.randint(2, 5))) for _ in range(60)}
    pieces = ["a", "b", "▁", *sorted(words)]
    scores = [float(-chance.randint(0, 4)) for _ in pieces]
    path = write_sentence_piece(tmp_path / "spm.gguf", pieces, scores, add_space_prefix=bool(seed % 2))
    agree(path, [*mixtures("aab ▁", 300), *mixtures("a", 10, 60), *mixtures("a b", 50), *mixtures("aé漢b\n", 100)])


def test_sentence_piece_defaults(tmp_path: Path) -> None:
    pieces = ["▁", "a", "b", "▁a", "ab", "▁ab"]
    path = write_sentence_piece(tmp_path / "spm.gguf", pieces, [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    tokenizer = agree(path, ["", " ", "ab", " ab", "ab ab", "<s>ab</s> ab", "a<unk>b", "x"])
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.bos_id, tokenizer.eos_id) == (True, False, 1, 2)
    assert tokenizer.token_text(tokenizer.encode("ab")[0]) == "▁ab"


@pytest.mark.parametrize("text", ["ab", " ab", "  ab", "", " ", "ab</s> ab</s>ab"])
def test_the_added_space_is_taken_away(tmp_path: Path, text: str) -> None:
    path = write_sentence_piece(tmp_path / "spm.gguf", ["▁", "a", "b", "▁a", "ab", "▁ab"], [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    tokenizer = Tokenizer.from_gguf(path)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, add_special=True), skip_special=True) == text.replace("</s>", "")


def test_sentence_piece_without_byte_tokens(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", "a", "\n"]
    path = write_vocabulary(tmp_path / "spm.gguf", "llama", tokens, [UNKNOWN, CONTROL, CONTROL, NORMAL, NORMAL], scores=[0.0] * 5)
    tokenizer = Tokenizer.from_gguf(path)
    # llama.cpp aborts on a byte without a token.
    assert tokenizer.encode("a\nx", parse_special=False) == [0, 0, 0, 3, 4, 0]


def test_words_that_join_across_spaces(tmp_path: Path) -> None:
    pieces = ["a", "b", "▁", "▁b", "a▁", "a▁b", "b▁▁", "▁▁"]
    path = write_sentence_piece(tmp_path / "spm.gguf", pieces, [-9.0, -9.0, -9.0, -4.0, -2.0, -1.0, -5.0, -6.0], add_space_prefix=False)
    agree(path, mixtures(" ab", 300, 20))


SPECIALS = {
    "<a>": CONTROL,
    "<a><b>": USER_DEFINED,
    "<b>": USER_DEFINED,
    "b><": CONTROL,
    "  ": USER_DEFINED,
    "<c> ": USER_DEFINED,
    "é": USER_DEFINED,
}


def test_special_tokens_that_overlap(tmp_path: Path) -> None:
    pieces = ["▁", "a", "b", "<", ">"]
    path = write_sentence_piece(tmp_path / "spm.gguf", pieces, [-1.0] * 5, SPECIALS)
    agree(path, mixtures(["<", ">", "a", "b", "<a>", "<b>", " ", "<c>", "é", "\xc3", "x"], 400, 12))
    agree(path, [text.encode()[1:-1] for text in mixtures("é<a>", 100, 8)])


@pytest.mark.parametrize("name", ["Phi-3 mini", "my PHI3"])
def test_phi3_drops_space_after_special_tokens(tmp_path: Path, name: str) -> None:
    specials = {"<|user|>": CONTROL, "<|end|>": CONTROL, "<|endoftext|>": CONTROL, "<extra>": USER_DEFINED}
    path = write_sentence_piece(tmp_path / "phi3.gguf", ["▁", "a", "\n"], [-1.0, -2.0, -3.0], specials, general_name=name)
    agree(path, mixtures([*specials, " ", "\n", "a", "\t", "</s>", "<s>"], 200, 10))


def test_mask_drops_space_before_it(tmp_path: Path) -> None:
    tokens = [*ALPHABET, "<mask>", "<s>"]
    types = [NORMAL] * 256 + [CONTROL] * 2
    keys = {"pre": "jina-v2-de", "bos_token_id": 257, "eos_token_id": 257, "seperator_token_id": 257}
    path = write_vocabulary(tmp_path / "jina.gguf", "gpt2", tokens, types, merges=NO_MERGES, **keys)
    agree(path, mixtures(["<mask>", "<s>", " ", "\n", "a"], 200, 10))


def test_merges_that_lead_outside_the_vocabulary(tmp_path: Path) -> None:
    merges = [("a", "b"), ("ab", "c"), ("Ġ", "a"), ("Ġa", "c"), ("a", "b")]
    # The bytes of "é" are no tokens: what stands around it must not become neighbours.
    tokens = [*(character for character in ALPHABET[:200] if character not in "Ã©"), "abc", "<e>"]
    last = len(tokens) - 1
    types = [NORMAL] * last + [CONTROL]
    path = write_vocabulary(tmp_path / "cut.gguf", "gpt2", tokens, types, merges=merges, pre="gpt-2", bos_token_id=last, eos_token_id=last)
    agree(path, [*mixtures("abc é漢\x00", 200), "".join(map(chr, range(256)))])
    agree(path, list(BYTES))


def test_whole_words_before_merges(tmp_path: Path) -> None:
    merges = [("a", "b"), ("b", "c")]
    tokens = [*ALPHABET, "ab", "bc", "abc", "Ġabc", "<e>"]
    types = [NORMAL] * 260 + [CONTROL]
    for pre in ("llama-bpe", "tekken", "qwen2"):
        path = write_vocabulary(tmp_path / f"{pre}.gguf", "gpt2", tokens, types, merges=merges, pre=pre, bos_token_id=260, eos_token_id=260)
        tokenizer = agree(path, mixtures("abc ", 200, 8))
        assert len(tokenizer.encode("abc")) == (2 if pre == "qwen2" else 1)
        assert tokenizer.add_bos == (pre != "qwen2")


def test_kinds_of_tokens(tmp_path: Path) -> None:
    tokens = [*ALPHABET, "<unk>", "<ctl>", "Ġuser", "Ġunused", "Ġnormal", "<end>"]
    types = [NORMAL] * 256 + [UNKNOWN, CONTROL, USER_DEFINED, UNUSED, NORMAL, CONTROL]
    path = write_vocabulary(
        tmp_path / "kinds.gguf", "gpt2", tokens, types, merges=NO_MERGES, pre="gpt-2", bos_token_id=261, eos_token_id=261
    )
    tokenizer = agree(path, ["a<unk>b<ctl>Ġuser Ġunused normal", "Ġnormal"])
    assert [tokenizer.is_special(token) for token in range(256, 262)] == [True, True, False, False, False, True]
    assert [tokenizer.token_bytes(token) for token in range(258, 261)] == ["Ġuser".encode(), b"", b" normal"]


@pytest.mark.parametrize("seed", range(25))
def test_ends_known_by_their_text(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    roles = [chance.choice(texts) for texts in endings._FILL_IN.values()]
    many = [*endings._END_OF_GENERATION, *endings._ALWAYS_SHOWN]
    # llama.cpp takes any one of several texts for a role, in no stated order, so each role gets one here.
    found = dict.fromkeys([*chance.sample(many, chance.randint(1, 12)), *chance.sample(roles, 3)])
    found = {text: chance.choice([NORMAL, CONTROL, USER_DEFINED]) for text in found}
    tokens = [*ALPHABET, "<bos>", *found]
    types = [NORMAL] * 256 + [CONTROL, *found.values()]
    keys = {"pre": "gpt-2", "bos_token_id": 256, "eos_token_id": 256 + seed % len(found)}
    if seed % 3 == 0:
        keys |= {"eot_token_id": 256, "eom_token_id": 257, "fim_pad_token_id": 60}
    path = write_vocabulary(tmp_path / "ends.gguf", "gpt2", tokens, types, merges=NO_MERGES, **keys)
    agree(path, mixtures([*found, " ", "a"], 40, 6, seed))


@pytest.mark.parametrize(
    "texts",
    [
        ("<|return|>", "<|call|>", "<|end|>"),
        ("<|calls|>", "<|flush|>", "<|end|>"),
        ("<|return|>", "<|end|>"),
        ("<|call|>", "<|end|>"),
        ("<|tool_response>", "</s>"),
    ],
)
def test_ends_that_depend_on_each_other(tmp_path: Path, texts: tuple[str, ...]) -> None:
    types = [NORMAL] * 256 + [CONTROL] * (1 + len(texts))
    path = write_vocabulary(
        tmp_path / "ends.gguf",
        "gpt2",
        [*ALPHABET, "<bos>", *texts],
        types,
        merges=NO_MERGES,
        pre="gpt-2",
        bos_token_id=256,
        eos_token_id=256,
    )
    agree(path, ["".join(texts)])


@pytest.mark.parametrize("keys", [{"bos_token_id": 1000, "eos_token_id": 70_000}, {}])
def test_ids_outside_the_vocabulary_leave_the_defaults(tmp_path: Path, keys: dict[str, int]) -> None:
    path = write_sentence_piece(tmp_path / "spm.gguf", ["▁", "a"], [-1.0, -2.0], **keys)
    tokenizer = agree(path, ["a"])
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


def test_glm_has_no_bos(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "glm.gguf", "gpt2", ALPHABET, [NORMAL] * 256, merges=NO_MERGES, pre="glm4")
    assert agree(path, ["a"]).bos_id is None


def test_empty_token(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "empty.gguf", "gpt2", [*ALPHABET, ""], [NORMAL] * 257, merges=NO_MERGES, pre="gpt-2")
    assert agree(path, ["a [EMPTY_256]"]).token_text(256) == "[EMPTY_256]"


def test_gemma4_needs_its_byte_tokens() -> None:
    metadata = {"tokenizer.ggml.model": "gemma4", "tokenizer.ggml.tokens": ["a", "<0x00>"], "tokenizer.ggml.merges": []}
    with pytest.raises(ModelFileError, match="no token <0x01>"):
        Tokenizer.from_metadata(metadata)
