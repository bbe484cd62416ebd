import hashlib
from pathlib import Path

import pytest
from tiny_folders import write_folder
from tiny_models import TinyModel, write_tiny

from edgelm.bench.model_facts import describe_model, sha256_of
from edgelm.errors import ModelFileError
from edgelm.runtime.export import export

SIZES = TinyModel("llama")
EMBEDDING = SIZES.n_vocab * SIZES.n_embd
LAYER = SIZES.n_embd * (2 * SIZES.n_embd + 2 * SIZES.n_kv_heads * SIZES.head + 3 * SIZES.n_ff)


def test_a_gguf_file(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "llama", format="Q4_0")
    model = describe_model(path)
    assert (model.name, model.n_bytes) == ("tiny.gguf", path.stat().st_size)
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (model.format, model.is_random) == ("Q4_0", True)


def test_a_tied_embedding_counts_once_as_the_output_layer(tmp_path: Path) -> None:
    model = describe_model(write_tiny(tmp_path / "m.gguf", "llama"))
    assert model.n_weights == model.n_weights_per_token == SIZES.n_layers * LAYER + EMBEDDING


def test_an_embedding_that_is_only_looked_up_is_not_multiplied(tmp_path: Path) -> None:
    model = describe_model(write_tiny(tmp_path / "m.gguf", "llama", tied=False))
    assert model.n_weights == SIZES.n_layers * LAYER + 2 * EMBEDDING
    assert model.n_weights_per_token == SIZES.n_layers * LAYER + EMBEDDING


def test_the_format_is_that_of_most_weights(tmp_path: Path) -> None:
    wide = {"n_vocab": 4096, "n_layers": 1, "format": "Q4_0", "embedding_format": "Q8_0"}
    assert describe_model(write_tiny(tmp_path / "wide.gguf", "llama", **wide)).format == "Q8_0"


def test_a_folder_of_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tensors = write_folder(folder, "Qwen2ForCausalLM", "BF16", n_shards=2)
    model = describe_model(folder)
    matrices = [tensor.size for tensor in tensors.values() if tensor.ndim > 1]
    assert (model.name, model.format, model.is_random) == ("model", "BF16", False)
    assert model.n_weights == model.n_weights_per_token == sum(matrices)
    files = sorted(folder.iterdir())
    assert model.n_bytes == sum(file.stat().st_size for file in files)
    assert model.sha256 == hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_an_exported_folder_tells_what_a_token_multiplies(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "m.gguf", "llama", format="Q4_0", tied=False)
    export(source, tmp_path / "folder", target="cpu")
    model, original = describe_model(tmp_path / "folder"), describe_model(source)
    assert model.n_bytes == sum(file.stat().st_size for file in (tmp_path / "folder").iterdir())
    assert (model.format, model.n_weights) == ("", None)
    assert model.n_weights_per_token == original.n_weights_per_token


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="none"):
        describe_model(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="none"):
        sha256_of([tmp_path / "none.gguf"])
