"""The written tokenizer.json against our own tokenizer, read by the `tokenizers` library and by onnxruntime-genai."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.huggingface_tokenizer import TOKENIZER_JSON
from edgelm.runtime.chat_template import ChatTemplate
from edgelm.runtime.pretokenizers import PRE_TOKENIZERS
from edgelm.runtime.tokenizer import Tokenizer
from edgelm.runtime.tokenizer.tokenizer_json import tokenizer_files
from edgelm.runtime.tokenizer.vocabulary import BYTE_TO_CHARACTER
from tests.hard_text import PIECES, TEXTS
from tests.llama_vocab import write_vocabulary

EVALUATION = (Path(__file__).parents[1] / "data" / "evaluation.txt").read_text(encoding="utf-8")[:40_000]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BYTES_OF_SPM = [f"<0x{byte:02X}>" for byte in range(256)]
ALPHABET = list(BYTE_TO_CHARACTER.values())
# Their regexes tell the case of letters beyond ASCII and take marks for letters, which llama.cpp does not.
CASED = ("tekken", "gpt-4o", "granite-embed-multi-97m")
ROWS = {row.names[0]: row for row in PRE_TOKENIZERS.values() if row.byte_level and row.names[0] != "kimi-k2"}
# Assigned since Unicode 15.1, the version of our classes; an "s" where case is ignored; spaces that are punctuation in some patterns.
DIFFERENT = str.maketrans("", "", "\u1c89ſ\u2028\u3000")


def metadata_of(path: Path) -> dict[str, Any]:
    with GGUFFile(path) as file:
        return dict(file.metadata)


def mixtures(alphabet: tuple[str, ...] | list[str] | str, count: int, longest: int = 30) -> list[str]:
    chance = random.Random(3)
    return ["".join(chance.choices(alphabet, k=chance.randint(0, longest))) for _ in range(count)]


def agree(metadata: dict[str, Any], texts: list[str]) -> tuple[Tokenizer, RustTokenizer]:
    """Check that the written file gives our tokens, with and without those around a text, and the text back from one without specials."""
    ours = Tokenizer.from_metadata(metadata)
    theirs = RustTokenizer.from_buffer(tokenizer_files(metadata)["tokenizer.json"])
    for text in texts:
        tokens = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == tokens, text
        assert theirs.encode(text).ids == ours.encode(text, add_special=True), text
        # After a special token, ours takes away the space that encoding put there, and theirs does not.
        if not any(map(ours.is_special, tokens)):
            assert theirs.decode(tokens, skip_special_tokens=False) == ours.decode(tokens), text
    return ours, theirs


@pytest.mark.parametrize("model", ["smollm2_path", "gemma3_path"])
def test_real_models(model: str, request: pytest.FixtureRequest) -> None:
    metadata = metadata_of(request.getfixturevalue(model))
    ours, theirs = agree(metadata, [*TEXTS, *mixtures(PIECES, 300), *EVALUATION.split("\n\n"), EVALUATION])
    assert theirs.get_vocab_size() == ours.n_vocab
    plain = "a <|im_end|> <eos> b"
    theirs.encode_special_tokens = True
    assert theirs.encode(plain, add_special_tokens=False).ids == ours.encode(plain, parse_special=False)


@pytest.mark.parametrize("name", ROWS)
def test_every_pre_tokenizer(name: str, tmp_path: Path) -> None:
    chance = random.Random(name)
    characters = sorted({BYTE_TO_CHARACTER[byte] for piece in PIECES for byte in piece.encode()})
    merges = chance.sample([(left, right) for left in characters for right in characters], len(characters) ** 2 // 2)
    tokens = [*ALPHABET, *(left + right for left, right in merges), "<|im_end|>"]
    last = len(tokens) - 1
    types = [NORMAL] * last + [CONTROL]
    path = write_vocabulary(tmp_path / "m.gguf", "gpt2", tokens, types, merges=merges, pre=name, bos_token_id=last, eos_token_id=last)
    texts = [text.translate(DIFFERENT) for text in (*TEXTS, *mixtures(PIECES, 60, 100))]
    agree(metadata_of(path), [EVALUATION[:5000], *(text for text in texts if name not in CASED or text.isascii())])


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2"])
def test_words_that_no_merge_leads_to(name: str, tmp_path: Path) -> None:
    tokens = [*ALPHABET, "ab", "bc", "abc", "<e>"]
    keys: dict[str, Any] = {"merges": [("a", "b"), ("b", "c")], "pre": name, "bos_token_id": 259, "eos_token_id": 259}
    ours, _ = agree(metadata_of(write_vocabulary(tmp_path / "m.gguf", "gpt2", tokens, [NORMAL] * 260, **keys)), mixtures("abc ", 200, 8))
    assert len(ours.encode("abc")) == (1 if name == "llama-bpe" else 2)


def test_cased_pre_tokenizers_are_those_of_the_models_authors(tmp_path: Path) -> None:
    keys = {"pre": "gpt-4o", "bos_token_id": 0, "eos_token_id": 0}
    path = write_vocabulary(tmp_path / "m.gguf", "gpt2", [*ALPHABET, "ab"], [NORMAL] * 257, merges=[("a", "b")], **keys)
    splits = json.loads(tokenizer_files(metadata_of(path))["tokenizer.json"])["pre_tokenizer"]["pretokenizers"]
    # o200k_base, as gpt-oss and Phi-4-mini publish it.
    assert splits[0]["pattern"]["Regex"].startswith(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    )


def write_sentence_piece(path: Path, pieces: list[str], scores: list[float], specials: dict[str, int] | None = None, **keys: Any) -> Path:
    specials = specials or {}
    tokens = ["<unk>", "<s>", "</s>", *BYTES_OF_SPM, *specials, *pieces]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *specials.values(), *[NORMAL] * len(pieces)]
    return write_vocabulary(path, "llama", tokens, types, scores=[0.0] * (259 + len(specials)) + scores, **keys)


@pytest.mark.parametrize("seed", range(4))
def test_sentence_piece_with_scores_of_their_own(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    pieces = ["a", "b", "▁", *sorted({"".join(chance.choices("ab▁", k=chance.randint(2, 5))) for _ in range(60)})]
    scores = [float(-rank) for rank in chance.sample(range(1, 1000), len(pieces))]
    path = write_sentence_piece(tmp_path / "spm.gguf", pieces, scores, add_space_prefix=bool(seed % 2), add_eos_token=seed > 1)
    agree(metadata_of(path), [*mixtures("aab ", 300), *mixtures("aé漢b\n", 100), *mixtures(["a", "<s>", " ", "b", "</s>"], 100)])


def test_special_tokens_and_the_space_they_swallow(tmp_path: Path) -> None:
    specials = {"<|user|>": CONTROL, "<|end|>": CONTROL, "<extra>": USER_DEFINED}
    path = write_sentence_piece(tmp_path / "m.gguf", ["▁", "a", "\n"], [-1.0, -2.0, -3.0], specials, general_name="Phi-3")
    ours, theirs = agree(metadata_of(path), mixtures([*specials, " ", "\n", "a", "\t", "</s>", "<s>"], 200, 10))
    theirs.encode_special_tokens = True
    assert theirs.encode("a<extra><s>", add_special_tokens=False).ids == ours.encode("a<extra><s>", parse_special=False)


def test_config_names_the_special_tokens_and_the_template(smollm2_path: Path) -> None:
    metadata = metadata_of(smollm2_path)
    config = json.loads(tokenizer_files(metadata)["tokenizer_config.json"])
    assert config["chat_template"] == metadata["tokenizer.chat_template"]
    names = {key: config[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token", "add_bos_token", "model_max_length")}
    assert names == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "add_bos_token": False,
        "model_max_length": 8192,
    }
    assert config["added_tokens_decoder"]["2"]["content"] == "<|im_end|>"
    assert config["added_tokens_decoder"]["2"]["special"]
    several = metadata | {"tokenizer.chat_template.tool_use": "{{ tools }}"}
    templates = json.loads(tokenizer_files(several)["tokenizer_config.json"])["chat_template"]
    assert [entry["name"] for entry in templates] == ["default", "tool_use"]


def test_files_of_a_folder_are_copied(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b'{"as": "it is"}')
    metadata = {TOKENIZER_JSON: str(tmp_path / "tokenizer.json"), "tokenizer.chat_template": "{{ messages }}"}
    files = tokenizer_files(metadata)
    assert files["tokenizer.json"] == b'{"as": "it is"}'
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == "{{ messages }}"
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"}')
    config = json.loads(tokenizer_files(metadata)["tokenizer_config.json"])
    assert config == {"eos_token": "</s>", "tokenizer_class": "LlamaTokenizer", "chat_template": "{{ messages }}"}
    for broken in ("[]", "{"):
        (tmp_path / "tokenizer_config.json").write_text(broken)
        with pytest.raises(ModelFileError, match="fetch the model again"):
            tokenizer_files(metadata)


def test_what_the_format_cannot_hold_is_an_error(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "merges": [("a", "b")]}
    path = tmp_path / "m.gguf"
    with pytest.raises(UnsupportedModelError, match="'ab' is no token"):
        tokenizer_files(metadata_of(write_vocabulary(path, "gpt2", ALPHABET, [1] * 256, pre="gpt-2", **keys)))
    with pytest.raises(UnsupportedModelError, match=r"kimi-k2.*Han"):
        tokenizer_files(metadata_of(write_vocabulary(path, "gpt2", [*ALPHABET, "ab"], [1] * 257, pre="kimi-k2", **keys)))
    tokens = [*BYTES_OF_SPM, *"ab", "ab"]
    with pytest.raises(UnsupportedModelError, match="'gemma4'"):
        tokenizer_files(metadata_of(write_vocabulary(path, "gemma4", tokens, [6] * 256 + [1] * 3, **keys)))
    metadata = metadata_of(write_sentence_piece(path, ["a"], [-1.0]))
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"][:-1], "\udcff"]
    with pytest.raises(UnsupportedModelError, match=r"udcff.*no valid UTF-8"):
        tokenizer_files(metadata)


# -- onnxruntime-genai -----------------------------------------------------------------------------------------------------------------


def genai_tokenizer(folder: Path, metadata: dict[str, Any]) -> Any:
    """onnxruntime-genai's tokenizer of a folder with the written files; it asks for a genai_config.json, but for no model."""
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    for name, data in tokenizer_files(metadata).items():
        (folder / name).write_bytes(data)
    ours = Tokenizer.from_metadata(metadata)
    decoder = {"filename": "none.onnx", "head_size": 1, "hidden_size": 1, "num_attention_heads": 1, "num_hidden_layers": 1}
    ids = {"bos_token_id": ours.bos_id, "eos_token_id": ours.eos_id, "pad_token_id": ours.eos_id}
    model = {"type": "llama", "vocab_size": ours.n_vocab, "context_length": 8, "decoder": decoder, **ids}
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": {"max_length": 8}}))
    return genai.Tokenizer(str(folder))


@pytest.mark.parametrize(("model", "space_prefix"), [("smollm2_path", False), ("gemma3_path", False), ("gemma3_path", True)])
def test_genai_gives_the_same_tokens(model: str, space_prefix: bool, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    metadata = metadata_of(request.getfixturevalue(model)) | {"tokenizer.ggml.add_space_prefix": space_prefix}
    ours, theirs = Tokenizer.from_metadata(metadata), genai_tokenizer(tmp_path, metadata)
    # Of the hard ones, those it gets right for every model: some scripts' digits and marks are beyond it where a space is put before.
    # It ends a text at a NUL character, and gives -1 for a byte without a token.
    hard = [text for text in TEXTS if text.isascii() and not set(text) & set("\0\x0b") and 0 < len(text) < 100]
    texts = [*EVALUATION.split("\n\n"), EVALUATION, *hard, *(() if space_prefix else TEXTS[12:19])]
    assert [text for text in texts if theirs.encode(text).tolist() != ours.encode(text)] == []
    if not space_prefix:  # which it takes away only after special tokens
        assert theirs.decode(ours.encode(EVALUATION)) == EVALUATION
    # It adds the tokens around a text only where it is told to.
    theirs.update_options(add_special_tokens="true")
    assert theirs.encode("Hello").tolist() == ours.encode("Hello", add_special=True)


def test_genai_applies_the_same_template(smollm2_path: Path, tmp_path: Path) -> None:
    metadata = metadata_of(smollm2_path)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Bye"}]
    theirs = genai_tokenizer(tmp_path, metadata).apply_chat_template(json.dumps(messages), add_generation_prompt=True)
    assert theirs == ChatTemplate.from_metadata(metadata).render(messages)
