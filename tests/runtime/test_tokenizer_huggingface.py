"""Tokenizers from tokenizer.json, against the tokenizers library itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.runtime.tokenizer import Tokenizer
from tests.hard_text import TEXTS

LONG_TEXTS = [text for text in TEXTS if len(text) < 400]


def byte_level(post_processor: bool = True) -> RustTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: token for token, text in enumerate([*alphabet, "th", "the", "Ġthe", "é"[:1] + "x"])}
    tokenizer = RustTokenizer(models.BPE(vocab, [("t", "h"), ("th", "e"), ("Ġ", "the")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|begin|>", special=True), AddedToken("<|im_end|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    if post_processor:
        begin = tokenizer.token_to_id("<|begin|>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    return tokenizer


def sentence_piece() -> RustTokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab", "▁ab"]
    vocab = {text: token for token, text in enumerate(pieces)}
    tokenizer = RustTokenizer(models.BPE(vocab, [("a", "b"), ("▁", "ab")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(strip)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def save(tokenizer: RustTokenizer, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_tokens_are_the_librarys(make: Any, tmp_path: Path) -> None:
    reference = make()
    tokenizer = Tokenizer.from_tokenizer_json(save(reference, tmp_path))
    for text in [*LONG_TEXTS, "the <tool> the<|im_end|>", "ab ab</s>ab"]:
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special=True) == reference.encode(text).ids
        if "<" not in text:
            assert tokenizer.decode(tokenizer.encode(text)) == reference.decode(tokenizer.encode(text))


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_decoding_gives_the_text_back(make: Any, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_tokenizer_json(save(make(), tmp_path))
    for text in LONG_TEXTS:
        if "▁" not in text:
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_as_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_tokenizer_json(save(byte_level(), tmp_path))
    text = "a<|im_end|><tool>"
    assert len(tokenizer.encode(text)) == 3
    plain = tokenizer.encode(text, parse_special=False)
    assert len(plain) == 12
    assert tokenizer.decode(plain) == text
    assert tokenizer.encode(text) != plain


def test_kinds_and_ends(tmp_path: Path) -> None:
    path = save(byte_level(), tmp_path)
    begin, end, tool = 260, 261, 262
    tokenizer = Tokenizer.from_tokenizer_json(path, {"edgelm.eos_token_ids": [7, 10_000], "tokenizer.ggml.eos_token_id": 8})
    assert [tokenizer.token_text(token) for token in (begin, end, tool)] == ["<|begin|>", "<|im_end|>", "<tool>"]
    assert [tokenizer.is_special(token) for token in (begin, end, tool)] == [True, True, False]
    assert tokenizer.eog_ids == {7, 8, end}
    assert (tokenizer.eos_id, tokenizer.add_bos, tokenizer.add_eos) == (8, True, False)
    assert tokenizer.token_bytes(258) == b" the"


@pytest.mark.parametrize(
    ("post_processor", "said", "expected"), [(True, None, 1), (True, False, 0), (True, True, 1), (False, None, 0), (False, True, 1)]
)
def test_first_token(post_processor: bool, said: bool | None, expected: int, tmp_path: Path) -> None:
    metadata: dict[str, Any] = {"tokenizer.ggml.bos_token_id": 260}
    if said is not None:
        metadata["tokenizer.ggml.add_bos_token"] = said
    tokenizer = Tokenizer.from_tokenizer_json(save(byte_level(post_processor), tmp_path), metadata)
    assert tokenizer.encode("the", add_special=True) == [260] * expected + [257]


def test_padded_vocabulary(tmp_path: Path) -> None:
    path = save(byte_level(), tmp_path)
    metadata = {"edgelm.tokenizer.json": str(path), "general.architecture": "llama", "llama.vocab_size": 300}
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.n_vocab == 300
    assert tokenizer.token_bytes(299) == b""


def test_broken_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_tokenizer_json(save(byte_level(), tmp_path))
    assert tokenizer.encode(b"a\xff") == tokenizer.encode("a\ufffd")
    assert tokenizer.encode("a\ud83d") == tokenizer.encode("a\ufffd")


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ModelFileError, match="cannot be read"):
        Tokenizer.from_tokenizer_json(path)
    for content in ("", "{}", "[1", json.dumps({"model": {"type": "BPE", "vocab": 5}})):
        path.write_text(content)
        with pytest.raises(ModelFileError, match=r"not a tokenizer\.json"):
            Tokenizer.from_tokenizer_json(path)


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece()])
def test_foreign_decoder(decoder: Any, tmp_path: Path) -> None:
    reference = byte_level()
    if decoder is not None:
        reference.decoder = decoder
    path = save(reference, tmp_path)
    if decoder is None:
        path.write_text(json.dumps({**json.loads(path.read_text()), "decoder": None}))
    with pytest.raises(UnsupportedModelError, match="decoder of the kind"):
        Tokenizer.from_tokenizer_json(path)
