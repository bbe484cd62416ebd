"""Packed weights are the file's bytes, in one run of memory whose size is known beforehand."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import write_tiny, write_variant

from edgelm.backends.config import ModelConfig, read_config
from edgelm.backends.cpu.packed_weights import Matrix, PackedWeights, pack_weights, weight_bytes
from edgelm.backends.weights import ModelTensors, read_tensors
from edgelm.quant.blocks import FORMATS
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.pack_rows import packed_bytes, unpack


def load(path: Path) -> tuple[ModelConfig, ModelTensors, PackedWeights]:
    file = GGUFFile(path)
    config = read_config(file.metadata)
    tensors = read_tensors(file, config)
    return config, tensors, pack_weights(tensors, config, file)


def stored(matrix: Matrix) -> NDArray[np.uint8]:
    """The file's bytes of a packed matrix, [n_out, bytes per row]."""
    block_format = FORMATS[matrix.format]
    packed = np.array((ctypes.c_uint8 * packed_bytes(block_format, matrix.n_out, matrix.n_in)).from_address(matrix.address))
    return unpack(block_format, packed, matrix.n_out, matrix.n_in).reshape(matrix.n_out, -1)


@pytest.mark.parametrize("variant", ["llama", "llama-untied", "llama-biases", "phi3", "gemma3"])
def test_the_size_is_known_beforehand(variant: str, tmp_path: Path) -> None:
    _, tensors, weights = load(write_variant(tmp_path / "model.gguf", variant))
    assert weights.n_bytes == weight_bytes(tensors)
    tied = weights.output.address == weights.embedding.address
    assert tied == (variant not in ("llama-untied", "phi3"))
    assert (weights.bytes_per_token == weights.n_bytes) == tied


def test_values_and_outputs_are_the_files_bytes(tmp_path: Path) -> None:
    _, tensors, weights = load(write_tiny(tmp_path / "model.gguf", "llama", format="Q4_K", embedding_format="Q6_K"))
    for layer, packed in zip(tensors.layers, weights.layers, strict=True):
        for linear, matrix in ((layer.v, packed.v), (layer.o, packed.o), (layer.gate, packed.gate), (layer.down, packed.down)):
            np.testing.assert_array_equal(stored(matrix).reshape(-1), linear.weight.data)
    np.testing.assert_array_equal(stored(weights.embedding).reshape(-1), tensors.embedding.data)


def test_rows_of_queries_and_keys_are_reordered_where_neighbouring_channels_rotate(tmp_path: Path) -> None:
    config, tensors, weights = load(write_tiny(tmp_path / "model.gguf", "llama", format="Q8_0"))
    even_then_odd = [*range(0, config.head_dim, 2), *range(1, config.head_dim, 2)]
    for linear, matrix in ((tensors.layers[0].q, weights.layers[0].q), (tensors.layers[0].k, weights.layers[0].k)):
        heads = linear.weight.data.reshape(-1, config.head_dim, stored(matrix).shape[1])
        np.testing.assert_array_equal(stored(matrix).reshape(heads.shape), heads[:, even_then_odd])
    _, tensors, weights = load(write_tiny(tmp_path / "other.gguf", "qwen2", format="Q8_0"))
    np.testing.assert_array_equal(stored(weights.layers[0].q).reshape(-1), tensors.layers[0].q.weight.data)
