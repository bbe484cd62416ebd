"""Folders of every architecture: names, keys and values as llama.cpp's converter gives them, and broken folders."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import MODEL_ARCH, get_tensor_name_map
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tiny_folders import CLASSES, N_HEADS, N_KV_HEADS, N_LAYERS, weights, write_folder, write_json

from edgelm.backends.config import ARCHITECTURES as GGUF_ARCHITECTURES
from edgelm.errors import ClosedError, EdgeLMError, ModelFileError, UnsupportedModelError
from edgelm.quant.huggingface import HuggingFaceFolder
from edgelm.quant.huggingface_config import ARCHITECTURES
from edgelm.quant.model_file import Tensor

EVERY_CLASS = pytest.mark.parametrize("class_name", CLASSES)


def as_f32(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=np.float32)


def expected_values(class_name: str, hf_name: str, values: np.ndarray) -> np.ndarray:
    """What the converter makes of a tensor, written row by row."""
    if "norm" in hf_name and class_name.startswith("Gemma"):
        return values + 1
    adjacent = GGUF_ARCHITECTURES[ARCHITECTURES[class_name].name].rope == "adjacent"
    if not adjacent or not any(part in hf_name for part in ("q_proj", "k_proj")):
        return values
    n_heads = N_HEADS if "q_proj" in hf_name else N_KV_HEADS
    head_dim = len(values) // n_heads
    rows = [head * head_dim + i + half * head_dim // 2 for head in range(n_heads) for i in range(head_dim // 2) for half in (0, 1)]
    return values[rows]


def test_every_architecture_of_the_engine_has_a_folder_form() -> None:
    assert {row.name for row in ARCHITECTURES.values()} == set(GGUF_ARCHITECTURES)
    assert set(CLASSES) == set(ARCHITECTURES)
    for row in ARCHITECTURES.values():
        assert row.permute == (GGUF_ARCHITECTURES[row.name].rope == "adjacent")


@EVERY_CLASS
@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_tensors(tmp_path: Path, class_name: str, dtype: str, n_shards: int) -> None:
    sources = write_folder(tmp_path, class_name, dtype, n_shards)
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[ARCHITECTURES[class_name].name]
    official = get_tensor_name_map(arch, N_LAYERS)
    with HuggingFaceFolder(tmp_path) as model:
        expected = {official.get_name(name, (".weight", ".bias")): name for name in sources}
        assert set(model.tensors) == set(expected)
        assert len(model.tensors) == len(sources)
        for name, tensor in model.tensors.items():
            values = as_f32(sources[expected[name]])
            assert (tensor.name, tensor.shape) == (name, values.shape)
            np.testing.assert_array_equal(tensor.dequantize(), expected_values(class_name, expected[name], values))
            assert tensor.format.name == ("F32" if values.ndim == 1 else dtype)
            assert tensor.data.size == tensor.format.nbytes(tensor.shape)


# -- output layer ----------------------------------------------------------------------------------------------------------------------


def rewrite(
    folder: Path, change: Callable[[dict[str, np.ndarray]], object], class_name: str = "MistralForCausalLM", **changes: Any
) -> None:
    """A folder whose tensors were changed."""
    tensors = write_folder(folder, class_name, **changes)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_tied_output_layer_is_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path, "MistralForCausalLM", tie_word_embeddings=True)
    with HuggingFaceFolder(tmp_path) as model:
        assert "output.weight" not in model.tensors
        with pytest.raises(KeyError):
            _ = model.tensors["output.weight"]


def test_an_untied_output_layer_must_be_there(tmp_path: Path) -> None:
    rewrite(tmp_path, lambda tensors: tensors.pop("lm_head.weight"), tie_word_embeddings=False)
    with pytest.raises(ModelFileError, match=r"lm_head\.weight.*missing"):
        HuggingFaceFolder(tmp_path)


def test_without_a_word_the_tensors_say_whether_it_is_tied(tmp_path: Path) -> None:
    rewrite(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    with HuggingFaceFolder(tmp_path) as model:
        assert "output.weight" not in model.tensors


# -- opening and closing ---------------------------------------------------------------------------------------------------------------


def test_unchanged_tensors_are_views_and_outlive_the_folder(tmp_path: Path) -> None:
    sources = write_folder(tmp_path, "Qwen3ForCausalLM", "BF16", n_shards=2)
    model = HuggingFaceFolder(tmp_path)
    tensor = model.tensors["blk.1.attn_q.weight"]
    assert not tensor.data.flags.owndata
    assert not tensor.data.flags.writeable
    model.drop_pages()
    model.close()
    model.close()
    np.testing.assert_array_equal(tensor.dequantize(), as_f32(sources["model.layers.1.self_attn.q_proj.weight"]))
    assert model.metadata["general.architecture"] == "qwen3"
    with pytest.raises(ClosedError):
        _ = model.tensors
    with pytest.raises(ClosedError):
        model.drop_pages()


def test_tensors_is_a_mapping_by_name(tmp_path: Path) -> None:
    write_folder(tmp_path, "MistralForCausalLM")
    with HuggingFaceFolder(tmp_path) as model:
        assert "blk.0.attn_q.weight" in model.tensors
        assert model.tensors.get("blk.9.attn_q.weight") is None
        assert all(isinstance(tensor, Tensor) for tensor in model.tensors.values())


# -- broken folders --------------------------------------------------------------------------------------------------------------------


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such folder"):
        HuggingFaceFolder(tmp_path / "absent")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config\.json: no such file"):
        HuggingFaceFolder(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff\xfe", b"", b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}"], ids=range(6))
def test_bad_json(tmp_path: Path, name: str, text: bytes) -> None:
    write_folder(tmp_path, "LlamaForCausalLM", n_shards=2)
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ModelFileError, match=name.replace(".", r"\.") + ": not "):
        HuggingFaceFolder(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    write_folder(tmp_path, "LlamaForCausalLM")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        HuggingFaceFolder(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UnsupportedModelError, match="pickled"):
        HuggingFaceFolder(tmp_path)


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    write_json(path, index)


def test_missing_shard(tmp_path: Path) -> None:
    write_folder(tmp_path, "LlamaForCausalLM", n_shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"model-00002-of-00003\.safetensors: no such file"):
        HuggingFaceFolder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda homes: homes.update({"model.extra.weight": "model-00001-of-00003.safetensors"}), r"'model\.extra\.weight' is missing"),
        (lambda homes: homes.pop("model.norm.weight"), r"'model\.norm\.weight' is not in the index"),
        (lambda homes: homes.update({"model.norm.weight": "../model.safetensors"}), "file in this folder"),
        (lambda homes: homes.update({"model.norm.weight": 5}), "not a text"),
        (lambda homes: homes.update({"model.norm.weight": "config.json"}), "file in this folder"),
    ],
    ids=["one too many", "one too few", "outside", "not a text", "not safetensors"],
)
def test_index_that_contradicts_the_shards(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    write_folder(tmp_path, "LlamaForCausalLM", n_shards=3)
    change_index(tmp_path, change)
    with pytest.raises(ModelFileError, match=message):
        HuggingFaceFolder(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "kind", "message"),
    [
        ("model.layers.0.mlp.experts.0.weight", np.ones((2, 2), np.float32), UnsupportedModelError, "not part of a llama model"),
        ("visual.patch.weight", np.ones(2, np.float32), UnsupportedModelError, "not part of a llama model"),
        ("model.layers.0.mlp.up_proj.weight", np.ones((4, 4), np.int8), UnsupportedModelError, "type I8; edgelm reads F32, F16, BF16"),
        ("model.layers.0.mlp.up_proj.weight", np.ones((0, 4), np.float32), ModelFileError, r"shape \(0, 4\)"),
        ("model.layers.0.mlp.up_proj.weight", np.ones((2, 2, 2), np.float32), ModelFileError, r"shape \(2, 2, 2\)"),
    ],
)
def test_tensors_that_do_not_belong(tmp_path: Path, name: str, array: np.ndarray, kind: type[EdgeLMError], message: str) -> None:
    rewrite(tmp_path, lambda tensors: tensors.update({name: array}))
    with pytest.raises(kind, match=message):
        HuggingFaceFolder(tmp_path)


def test_buffers_are_ignored(tmp_path: Path) -> None:
    rewrite(tmp_path, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}))
    with HuggingFaceFolder(tmp_path) as model:
        assert len(model.tensors) == len(weights("MistralForCausalLM"))


def test_two_names_of_one_tensor(tmp_path: Path) -> None:
    rewrite(tmp_path, lambda tensors: tensors.update({"model.layers.0.mlp.gate_up_proj.weight": np.ones((2, 2), np.float32)}))
    with pytest.raises(ModelFileError, match="are the same one"):
        HuggingFaceFolder(tmp_path)


# -- fuzzing ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_folder(folder, "MistralForCausalLM")
    return folder


@settings(max_examples=400, deadline=None)
@given(
    place=st.integers(0, 3000),
    raw=st.binary(max_size=12),
    removed=st.integers(0, 12),
    length=st.none() | st.sampled_from([0, 1, 2**31, 2**63 - 1, 2**64 - 1]) | st.integers(0, 10_000),
)
def test_a_damaged_safetensors_file_gives_a_clear_error_or_a_model(
    shared_folder: Path, place: int, raw: bytes, removed: int, length: int | None
) -> None:
    path = shared_folder / "model.safetensors"
    sound = path.read_bytes()
    damaged = sound[:place] + raw + sound[place + removed :]
    path.write_bytes(damaged if length is None else struct.pack("<Q", length) + damaged[8:])
    try:
        with HuggingFaceFolder(shared_folder) as model:
            for tensor in model.tensors.values():
                assert tensor.data.size == tensor.format.nbytes(tensor.shape)
    except EdgeLMError:
        pass
    finally:
        path.write_bytes(sound)


def test_the_gguf_package_knows_the_architectures() -> None:
    assert {row.name for row in ARCHITECTURES.values()} <= {gguf.MODEL_ARCH_NAMES[arch] for arch in MODEL_ARCH}
