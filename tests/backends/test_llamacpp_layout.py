"""What a file's metadata and tensors say of the memory it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import write_tiny, write_variant

from edgelm.backends.llamacpp_layout import bytes_per_token, read_layout, rope_original_context
from edgelm.errors import ModelFileError
from edgelm.quant.blocks import F16, Q8_0
from edgelm.quant.gguf_file import GGUFFile


def test_key_and_value_heads_of_a_size_of_their_own(tmp_path: Path) -> None:
    layout = read_layout(GGUFFile(write_variant(tmp_path / "model.gguf", "qwen3")))  # three layers, two heads of 32 channels each
    assert layout.kv_bytes(F16, F16) == 3 * 2 * 2 * 32 * 2
    assert layout.kv_bytes(Q8_0, F16) == 3 * 2 * (34 + 32 * 2)


def test_heads_that_differ_from_layer_to_layer(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf", "llama", extra=(("array", "attention.head_count_kv", [1, 2, 4]),))
    assert read_layout(GGUFFile(path)).kv_bytes(F16, F16) == (1 + 2 + 4) * 2 * 16 * 2


def test_a_file_without_its_sizes(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf", "llama")
    path.write_bytes(path.read_bytes().replace(b"llama.block_count", b"llama.block_c0unt"))
    with pytest.raises(ModelFileError, match=r"llama\.block_count"):
        read_layout(GGUFFile(path))


def test_an_embedding_that_is_not_the_output_is_read_by_the_row(tmp_path: Path) -> None:
    tied, untied = (GGUFFile(write_tiny(tmp_path / f"{tied}.gguf", "llama", tied=tied)) for tied in (True, False))
    assert bytes_per_token(tied) == sum(tensor.data.nbytes for tensor in tied.tensors.values())
    assert bytes_per_token(untied) == bytes_per_token(tied) + 64 * 4


@pytest.mark.parametrize(("n_ctx", "factors"), [(256, "short"), (257, "long")])
def test_which_longrope_factors(n_ctx: int, factors: str, tmp_path: Path) -> None:
    told = rope_original_context(GGUFFile(write_variant(tmp_path / "model.gguf", "phi3-longrope")), n_ctx)
    assert told is not None
    assert told[0] == "phi3.rope.scaling.original_context_length"
    assert (told[1] > 1 << 20) == (factors == "short")
    assert rope_original_context(GGUFFile(write_variant(tmp_path / "other.gguf", "llama")), n_ctx) is None
