"""Vocabularies from tokenizer.json: llama.cpp gives the tokens that the tokenizers library gives for the same file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hard_text import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_vocab import llama_survives, llama_vocab
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgelm.errors import EdgeLMError, ModelFileError, UnsupportedModelError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.gguf_vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, read_vocabulary
from edgelm.quant.gguf_writer import entry, write_gguf
from edgelm.runtime.pretokenizers import PRE_TOKENIZERS
from edgelm.runtime.tokenizer.split_regexes import pre_tokenizer_json
from edgelm.runtime.tokenizer.tokenizer_json import tokenizer_files

KNOWN = ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "tekken", "gpt-4o")


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "Ġ")]
    vocab = {text: token for token, text in enumerate([*alphabet, *(left + right for left, right in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|begin|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False), AddedToken("<|looks|>", special=False, normalized=False)])
    return tokenizer


def sentence_piece(space_prefix: bool) -> Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("a", "b"), ("▁", "a"), ("▁", "ab"), ("▁a", "b"), ("▁", "t"), ("h", "e"), ("▁t", "he")]
    letters = sorted({letter for pair in merges for letter in "".join(pair)})
    pieces += [*dict.fromkeys(left + right for left, right in merges), *letters]
    vocab = {text: token for token, text in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    marks = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marks]) if space_prefix else marks
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    if not space_prefix:  # where there is one, llama.cpp looks for such tokens before it is put there, the library afterwards
        tokenizer.add_tokens([AddedToken("▁▁▁", special=False, normalized=True)])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, **changes: Any) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def write(path: Path, keys: dict[str, Any]) -> Path:
    keys = {"general.architecture": "llama", "tokenizer.ggml.add_bos_token": False, **keys}
    write_gguf(path, b"".join(entry(key, value) for key, value in keys.items()), len(keys), [])
    return path


@pytest.mark.parametrize("make", [byte_level, lambda: sentence_piece(True), lambda: sentence_piece(False)])
def test_llamacpp_gives_the_library_s_tokens(tmp_path: Path, make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    n_vocab = tokenizer.get_vocab_size() + 5
    with llama_vocab(write(tmp_path / "m.gguf", read_vocabulary(save(tokenizer, tmp_path), n_vocab))) as theirs:
        assert theirs.n_vocab == n_vocab
        for text in [*TEXTS, "the <tool> the<|begin|>the", "ab ab tab the  ab   ab", "the</s> <|looks|>"]:
            if len(text) < 400 and text and llama_survives(text.encode()) and "▁" not in text:
                assert theirs.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids, text


def test_tokens_and_types(tmp_path: Path) -> None:
    keys = read_vocabulary(save(byte_level(), tmp_path), 270)
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert keys["tokenizer.ggml.tokens"][258:265] == ["Ġthe", "ĠĠ", "<|begin|>", "<tool>", "<|looks|>", "[PAD263]", "[PAD264]"]
    assert keys["tokenizer.ggml.token_type"][258:264].tolist() == [NORMAL, NORMAL, CONTROL, USER_DEFINED, CONTROL, UNUSED]
    assert keys["tokenizer.ggml.merges"] == ["t h", "th e", "Ġ the", "Ġ Ġ"]


def test_scores_are_in_the_order_of_the_merges(tmp_path: Path) -> None:
    keys = read_vocabulary(save(sentence_piece(False), tmp_path), 300)
    tokens, types, scores = (keys[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "scores"))
    assert (scores.dtype, types.dtype) == (np.float32, np.int32)
    merged = ["ab", "▁a", "▁ab", "▁t", "he", "▁the"]
    assert [scores[tokens.index(text)] for text in merged] == [0, -1, -2, -3, -4, -5]
    assert types[tokens.index("<0x0A>")] == BYTE
    assert types[tokens.index("   ")] == USER_DEFINED  # llama.cpp looks for it before spaces are marked
    assert keys["tokenizer.ggml.add_space_prefix"] is False
    assert read_vocabulary(save(sentence_piece(True), tmp_path), 300)["tokenizer.ggml.add_space_prefix"] is True


def test_the_unknown_token(tmp_path: Path) -> None:
    path = save(sentence_piece(True), tmp_path, added_tokens=[])
    assert read_vocabulary(path, 300)["tokenizer.ggml.token_type"][0] == UNKNOWN


def test_a_real_vocabulary_comes_back_as_it_was(tmp_path: Path, smollm2_path: Path) -> None:
    with GGUFFile(smollm2_path) as file:
        metadata = file.metadata
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_files(metadata)["tokenizer.json"])
    for key, value in read_vocabulary(tmp_path / "tokenizer.json", 49152).items():
        np.testing.assert_array_equal(metadata[key], value)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers_are_known_by_their_regexes(tmp_path: Path, name: str) -> None:
    """Each by a name that means the same, or not at all."""
    row = PRE_TOKENIZERS[name]
    try:
        description = pre_tokenizer_json(row)
    except UnsupportedModelError:
        return
    model = {"type": "BPE", "ignore_merges": row.ignore_merges, "vocab": {"a": 0}, "merges": []}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"pre_tokenizer": description, "model": model}))
    if row in (PRE_TOKENIZERS[known] for known in KNOWN):
        assert PRE_TOKENIZERS[read_vocabulary(path, 1)["tokenizer.ggml.pre"]] is row
    else:
        with pytest.raises(UnsupportedModelError, match=r"cuts text by|vocabulary that is neither"):
            read_vocabulary(path, 1)


def split(pattern: str, **changes: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **changes}


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [
        # As Llama 3, Phi-4, Qwen 2.5 and SmolLM2 have them.
        ([split(LLAMA3)], True, "llama-bpe"),
        ([split(LLAMA3, behavior="Removed", invert=True)], False, "dbrx"),
        ([split(LLAMA3.replace("{1,3}", ""))], False, "qwen2"),
        (
            [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}],
            False,
            "smollm",
        ),
    ],
)
def test_pre_tokenizers_of_published_models(tmp_path: Path, steps: list[Any], ignore_merges: bool, name: str) -> None:
    byte_level_step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "ignore_merges": ignore_merges, "vocab": {"a": 0}, "merges": []}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level_step]}, "model": model}))
    assert read_vocabulary(path, 1)["tokenizer.ggml.pre"] == name


def with_normalizer(make: Tokenizer, normalizer: Any) -> Tokenizer:
    make.normalizer = normalizer
    return make


def with_pre_tokenizer(make: Tokenizer, pre_tokenizer: Any) -> Tokenizer:
    make.pre_tokenizer = pre_tokenizer
    return make


def merged(merges: list[list[str]]) -> dict[str, Any]:
    """The SentencePiece model with other merges."""
    model = json.loads(sentence_piece(True).to_str())["model"]
    return {"model": model | {"merges": merges}}


@pytest.mark.parametrize(
    ("tokenizer", "changes", "kind", "message"),
    [
        (byte_level(), {"model": {"type": "Unigram"}}, UnsupportedModelError, "a model of the kind 'Unigram'"),
        (byte_level(), {"model": {"vocab": {"a": 0, "b": 0}}}, ModelFileError, "'a' and 'b' are both token 0"),
        (byte_level(), {"model": {"vocab": {"a": 500}}}, ModelFileError, "token 500 is beyond the 300 rows"),
        (byte_level(), {"model": {"vocab": {"a": -1}}}, ModelFileError, "'a' is -1"),
        (byte_level(), {"model": {"vocab": {"a": 0}, "merges": 5}}, ModelFileError, "'merges' is 5"),
        (byte_level(), {"model": {"vocab": {"a": 0}, "merges": ["a b c"]}}, ModelFileError, "the merge 'a b c' is not a pair"),
        (byte_level(), {"model": {"vocab": {"a": 0}, "merges": [["a ", "b"]]}}, UnsupportedModelError, "a merge with a space"),
        (byte_level(), {"added_tokens": [{"id": 290, "content": "a"}]}, ModelFileError, "two tokens have the same text"),
        (byte_level(), {"added_tokens": 5}, ModelFileError, "'added_tokens' is 5"),
        (byte_level(), {"model": {"vocab": {}, "merges": []}, "pre_tokenizer": 5}, ModelFileError, "'pre_tokenizer' is 5"),
        (with_normalizer(byte_level(), normalizers.Lowercase()), {}, UnsupportedModelError, "the normalizer 'Lowercase'"),
        (with_pre_tokenizer(byte_level(), pre_tokenizers.ByteLevel(add_prefix_space=True)), {}, UnsupportedModelError, "the pre-tokenizer"),
        (
            with_pre_tokenizer(
                byte_level(), pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x+"), "isolated"), pre_tokenizers.ByteLevel(False)])
            ),
            {},
            UnsupportedModelError,
            r"cuts text by \"x\+ and then by GPT-2's words",
        ),
        (with_normalizer(sentence_piece(True), None), {}, UnsupportedModelError, "a vocabulary without ▁ for spaces"),
        (with_normalizer(sentence_piece(True), normalizers.NFKC()), {}, UnsupportedModelError, "the normalizer"),
        (with_pre_tokenizer(sentence_piece(True), pre_tokenizers.Metaspace(split=True)), {}, UnsupportedModelError, "the pre-tokenizer"),
        (
            sentence_piece(True),
            merged([["a", "b"], ["▁", "ab"], ["h", "e"], ["▁a", "b"]]),
            UnsupportedModelError,
            "merges to '▁ab' that others",
        ),
        (sentence_piece(True), merged([["a", "b"], ["▁", "a"]]), UnsupportedModelError, "'▁' and 'ab' are not merged"),
        (
            sentence_piece(True),
            {"model": {"byte_fallback": False, "vocab": {}}},
            UnsupportedModelError,
            "neither byte-level nor has a token",
        ),
    ],
)
def test_what_llamacpp_would_run_otherwise_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, changes: dict[str, Any], kind: type[EdgeLMError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        read_vocabulary(save(tokenizer, tmp_path, **changes), 300)
    assert str(tmp_path) in str(caught.value)


PLACES = (
    *(("added_tokens",), ("normalizer",), ("pre_tokenizer",), ("model",), ("model", "vocab"), ("model", "merges"), ("model", "unk_token")),
    *(("model", "byte_fallback"), ("pre_tokenizer", "type"), ("normalizer", "type"), ("normalizer", "normalizers"), ("model", "type")),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 400) | st.sampled_from(["a", "BPE", "Sequence", "Split", "ByteLevel", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "id", "content", "a", "pattern"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(space_prefix=st.sampled_from([None, True, False]), place=st.sampled_from(PLACES), value=VALUES)
def test_any_file_gives_a_clear_error_or_a_vocabulary(
    tmp_path_factory: pytest.TempPathFactory, space_prefix: bool | None, place: tuple[str, ...], value: Any
) -> None:
    tokenizer = json.loads((byte_level() if space_prefix is None else sentence_piece(space_prefix)).to_str())
    parent = tokenizer if len(place) == 1 else tokenizer[place[0]]
    if parent is None:
        return
    parent[place[-1]] = value
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_text(json.dumps(tokenizer))
    try:
        keys = read_vocabulary(path, 300)
    except EdgeLMError:
        return
    assert len(keys["tokenizer.ggml.tokens"]) == len(keys["tokenizer.ggml.token_type"]) == 300
