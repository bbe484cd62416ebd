"""Folders of every architecture written as GGUF: llama.cpp loads them and computes what the folder's own reference computes."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from llama_vocab import llama_vocab
from numpy.typing import NDArray
from tiny_folders import CLASSES, HEAD_DIM, N_VOCAB, write_folder, write_json

from edgelm.backends.reference import ReferenceModel
from edgelm.bench.llamacpp_peer import LlamaCppPeer
from edgelm.errors import InvalidRequestError, ModelFileError, UnsupportedModelError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.gguf_metadata import FILE_TYPES, encode_metadata, gguf_metadata
from edgelm.quant.gguf_writer import TensorSource, write_gguf
from edgelm.quant.huggingface import HuggingFaceFolder
from edgelm.quant.model_file import ModelFile

TOKENS = np.random.default_rng(1).integers(3, N_VOCAB, 50).astype(np.int32)

LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.5}
LONGROPE = {"type": "longrope", "long_factor": [float(i) for i in range(1, 9)], "short_factor": [1 + i / 10 for i in range(8)]}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in CLASSES},
    "Gemma2ForCausalLM": ("Gemma2ForCausalLM", {"query_pre_attn_scalar": HEAD_DIM}),
    "Llama 3": ("LlamaForCausalLM", {"rope_scaling": LLAMA3}),
    "yarn": ("Qwen2ForCausalLM", {"rope_scaling": YARN}),
    "longrope": ("Phi3ForCausalLM", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64}),
    "linear": ("Gemma3ForCausalLM", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
}


def write(path: Path, model: ModelFile, file_type: str | None = None) -> Path:
    metadata, n_entries = encode_metadata(model.metadata, file_type)
    sources = [TensorSource(t.name, t.shape, t.format, lambda t=t: [t.data]) for t in model.tensors.values()]  # type: ignore[misc]
    write_gguf(path, metadata, n_entries, sources)
    return path


def converted(folder: Path, class_name: str = "MistralForCausalLM", **changes: Any) -> Path:
    """A GGUF file beside the folder, which is written first."""
    write_folder(folder, class_name, **changes)
    with HuggingFaceFolder(folder) as model:
        return write(folder.with_suffix(".gguf"), model)


def llamacpp_logits(path: Path) -> NDArray[np.float32]:
    peer = LlamaCppPeer(path, 1, n_ctx=256, kv_type="f32", flash_attention=False)
    try:
        return peer.logits(TOKENS)
    finally:
        peer.close()


@pytest.mark.parametrize("variant", VARIANTS)
def test_llamacpp_computes_what_the_folder_says(tmp_path: Path, variant: str) -> None:
    class_name, changes = VARIANTS[variant]
    path = converted(tmp_path / "folder", class_name, **changes)
    with HuggingFaceFolder(tmp_path / "folder") as model, GGUFFile(path) as file:
        expected = ReferenceModel(model, 256).logits(TOKENS)
        # GGUF has float32 where config.json has decimals.
        np.testing.assert_allclose(ReferenceModel(file, 256).logits(TOKENS), expected, atol=1e-5 * np.abs(expected).max())
    # llama.cpp looks gelu up in a float16 table.
    bound = 2e-3 if class_name.startswith("Gemma") else 2e-4
    np.testing.assert_allclose(llamacpp_logits(path), expected, atol=bound * np.abs(expected).max())


def test_template_and_special_tokens_reach_llamacpp(tmp_path: Path) -> None:
    path = converted(tmp_path / "folder")
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert llama_cpp.llama_model_chat_template(model, None) == b"{{ messages[0].content }}"
    vocab = llama_cpp.llama_model_get_vocab(model)
    assert llama_cpp.llama_vocab_n_tokens(vocab) == N_VOCAB
    assert llama_cpp.llama_vocab_bos(vocab) == 1
    assert llama_cpp.llama_vocab_eos(vocab) == 2
    assert llama_cpp.llama_vocab_eot(vocab) == 7  # the other token that generation_config.json lists
    assert llama_cpp.llama_vocab_get_add_bos(vocab)
    assert not llama_cpp.llama_vocab_get_add_eos(vocab)
    length = ctypes.create_string_buffer(64)
    assert llama_cpp.llama_model_meta_val_str(model, b"general.name", length, len(length)) > 0
    assert length.value == b"folder"
    llama_cpp.llama_model_free(model)
    with llama_vocab(path) as tokenizer:
        assert tokenizer.encode("aa</s>", add_special=True) == [1, 3, 3, 2]
        assert tokenizer.end_of_generation() == {2, 7}


def test_values_have_the_types_that_llamacpp_reads(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "Gemma3ForCausalLM")
    with HuggingFaceFolder(tmp_path / "folder") as model:
        fields = GGUFReader(write(tmp_path / "m.gguf", model, "Q4_0")).fields
    kinds = {name: field.types for name, field in fields.items() if not name.startswith("GGUF.")}
    assert kinds["gemma3.block_count"] == [GGUFValueType.UINT32]
    assert kinds["gemma3.rope.freq_base"] == [GGUFValueType.FLOAT32]
    assert kinds["gemma3.attention.sliding_window_pattern"][:2] == [GGUFValueType.ARRAY, GGUFValueType.BOOL]
    assert kinds["tokenizer.ggml.token_type"][:2] == [GGUFValueType.ARRAY, GGUFValueType.INT32]
    assert kinds["tokenizer.ggml.tokens"][:2] == [GGUFValueType.ARRAY, GGUFValueType.STRING]
    assert kinds["tokenizer.ggml.eos_token_id"] == [GGUFValueType.UINT32]
    assert kinds["tokenizer.ggml.add_bos_token"] == [GGUFValueType.BOOL]
    assert fields["general.file_type"].contents() == 2
    assert fields["general.quantization_version"].contents() == 2
    assert not any(name.startswith("edgelm.") for name in kinds)


def test_file_types_are_of_formats_that_there_are() -> None:
    assert set(FILE_TYPES) <= set(GGMLQuantizationType.__members__)


def test_metadata_of_a_gguf_file_stays_as_it_is(tmp_path: Path) -> None:
    first = converted(tmp_path / "folder")
    with GGUFFile(first) as file:
        metadata = gguf_metadata(file.metadata | {"general.alignment": 64, "split.count": 1})
        assert metadata.keys() == file.metadata.keys()
        assert all(np.array_equal(metadata[key], value) for key, value in file.metadata.items())


def test_arrays_of_other_types_are_converted() -> None:
    metadata = gguf_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": np.array([0, -1]),
            "tokenizer.ggml.token_type": np.array([1, 1], np.uint8),
            "a.wide": np.zeros(2),
            "a.number": np.int64(5),
        }
    )
    dtypes = {key: value.dtype for key, value in metadata.items() if isinstance(value, np.ndarray)}
    assert dtypes == {"tokenizer.ggml.scores": np.float32, "tokenizer.ggml.token_type": np.int32, "a.wide": np.float32}
    assert type(metadata["a.number"]) is int


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    write_folder(tmp_path, "MistralForCausalLM")
    (tmp_path / "tokenizer.json").unlink()
    with HuggingFaceFolder(tmp_path) as model, pytest.raises(ModelFileError, match=r"no tokenizer \(tokenizer\.json"):
        encode_metadata(model.metadata)


def test_special_tokens_of_newer_folders(tmp_path: Path) -> None:
    """tokenizer_config.json names them without their numbers, which are in tokenizer.json."""
    write_folder(tmp_path, "Qwen2ForCausalLM", bos_token_id=None, eos_token_id=3)
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    (tmp_path / "generation_config.json").unlink()
    with HuggingFaceFolder(tmp_path) as model:
        metadata = gguf_metadata(model.metadata)
    ids = {key: metadata[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "eot")}
    assert ids == {"bos": 1, "eos": 2, "eot": 3}


def test_a_first_token_that_is_not_named_is_not_added(tmp_path: Path) -> None:
    write_folder(tmp_path, "Qwen2ForCausalLM", bos_token_id=None)
    write_json(tmp_path / "tokenizer_config.json", {"add_bos_token": True, "eos_token": "</s>"})
    write_json(tmp_path / "generation_config.json", {})
    with HuggingFaceFolder(tmp_path) as model:
        metadata = gguf_metadata(model.metadata)
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.ggml.bos_token_id" not in metadata


def test_more_last_tokens_than_gguf_has_room_for(tmp_path: Path) -> None:
    write_folder(tmp_path, "MistralForCausalLM")
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [2, 7, 8, 9]})
    with HuggingFaceFolder(tmp_path) as model, pytest.raises(UnsupportedModelError, match=r"\[7, 8, 9\] all end an answer"):
        encode_metadata(model.metadata)


@pytest.mark.parametrize(
    ("class_name", "changes", "refused"),
    [
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 16}, True),
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": HEAD_DIM}, False),
        ("Gemma3ForCausalLM", {"query_pre_attn_scalar": 16}, True),
        ("Gemma3ForCausalLM", {}, False),
        ("GraniteForCausalLM", {}, False),
    ],
)
def test_an_attention_scale_that_llamacpp_would_not_use(tmp_path: Path, class_name: str, changes: dict[str, Any], refused: bool) -> None:
    write_folder(tmp_path, class_name, **changes)
    with HuggingFaceFolder(tmp_path) as model:
        if refused:
            with pytest.raises(UnsupportedModelError, match=r"scales attention by 0\.25, but llama\.cpp runs gemma. with 0\.204"):
                encode_metadata(model.metadata)
        else:
            encode_metadata(model.metadata)


@pytest.mark.parametrize("n_layers", [46, 62])
def test_the_largest_gemma_divides_its_width_by_its_heads(n_layers: int) -> None:
    name = "gemma2" if n_layers == 46 else "gemma3"
    sizes = {"block_count": n_layers, "embedding_length": 4608, "attention.head_count": 32, "attention.key_length": 128}
    metadata = {"general.architecture": name, "tokenizer.ggml.model": "llama", **{f"{name}.{key}": size for key, size in sizes.items()}}
    gguf_metadata(metadata | {f"{name}.attention.scale": 144**-0.5})
    with pytest.raises(UnsupportedModelError, match="scales attention"):
        gguf_metadata(metadata | {f"{name}.attention.scale": 128**-0.5})


def test_values_that_gguf_does_not_hold() -> None:
    with pytest.raises(InvalidRequestError, match=r"a\.b"):
        encode_metadata({"tokenizer.ggml.model": "llama", "a.b": None})


def test_text_that_is_none(tmp_path: Path) -> None:
    write_folder(tmp_path, "MistralForCausalLM")
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": "\ud800"})
    with HuggingFaceFolder(tmp_path) as model, pytest.raises(ModelFileError, match=r"tokenizer\.chat_template has '\\ud800' in it"):
        encode_metadata(model.metadata)
