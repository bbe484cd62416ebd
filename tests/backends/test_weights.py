from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_tiny

from edgelm.backends.config import read_config
from edgelm.backends.weights import ModelTensors, read_tensors, tensor_rows
from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.model_file import Tensor


class ChangedFile:
    """A file of which some tensors were added, replaced, or (None) removed."""

    def __init__(self, file: GGUFFile, **changes: Tensor | None) -> None:
        self.metadata, self.path = file.metadata, file.path
        named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
        self.tensors = {name: tensor for name, tensor in {**file.tensors, **named}.items() if tensor is not None}

    def drop_pages(self) -> None: ...
    def close(self) -> None: ...


def read(file: GGUFFile | ChangedFile) -> ModelTensors:
    return read_tensors(file, read_config(file.metadata))


def test_rows_are_a_view(tmp_path: Path) -> None:
    with GGUFFile(write_tiny(tmp_path / "m.gguf", "llama", format="Q4_1")) as file:
        tensor = file.tensors["blk.0.attn_q.weight"]
        rows = tensor_rows(tensor, 8, 24)
        assert rows.shape == (16, 64)
        assert np.shares_memory(rows.data, tensor.data)
        np.testing.assert_array_equal(rows.dequantize(), tensor.dequantize()[8:24])


def test_fused_tensors_are_presented_as_their_parts(tmp_path: Path) -> None:
    with GGUFFile(write_tiny(tmp_path / "m.gguf", "phi3", format="Q8_0", qkv_bias=True)) as file:
        layer = read(file).layers[1]
        fused, bias, gate_up = (
            file.tensors[f"blk.1.{name}"].dequantize() for name in ("attn_qkv.weight", "attn_qkv.bias", "ffn_up.weight")
        )
        parts = [layer.q, layer.k, layer.v]
        assert [part.n_out for part in parts] == [64, 32, 32]
        np.testing.assert_array_equal(np.concatenate([part.weight.dequantize() for part in parts]), fused)
        np.testing.assert_array_equal(np.concatenate([part.bias.dequantize() for part in parts if part.bias]), bias)
        np.testing.assert_array_equal(np.concatenate([layer.gate.weight.dequantize(), layer.up.weight.dequantize()]), gate_up)


def test_tied_and_untied_output(tmp_path: Path) -> None:
    with GGUFFile(write_tiny(tmp_path / "tied.gguf", "llama")) as file:
        tensors = read(file)
        assert tensors.output.weight is tensors.embedding
    with GGUFFile(write_tiny(tmp_path / "untied.gguf", "llama", tied=False, n_vocab=300)) as file:
        tensors = read(file)
        assert tensors.output.weight.name == "output.weight"
        assert tensors.n_vocab == 300


def test_longrope_factors_depend_on_the_context(tmp_path: Path) -> None:
    with GGUFFile(write_tiny(tmp_path / "m.gguf", "phi3", longrope=True)) as file:
        config, tensors = read_config(file.metadata), read(file)
        rope = replace(config.rope, original_context=256)
        short, long = (tensors.rope_factors(rope, n_ctx) for n_ctx in (256, 257))
        assert short is not None
        assert long is not None
        assert (short[-1], long[-1]) == (2.0, 16.0)


@pytest.mark.parametrize("name", ["token_embd.weight", "output_norm.weight", "blk.2.ffn_down.weight", "blk.0.attn_norm.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    with GGUFFile(write_tiny(tmp_path / "m.gguf", "llama")) as file, pytest.raises(ModelFileError, match=name):
        read(ChangedFile(file, **{name.replace(".", "__"): None}))


@pytest.mark.parametrize("name", ["token_embd.weight", "output_norm.weight", "blk.2.ffn_down.weight"])
def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path, name: str) -> None:
    with GGUFFile(write_tiny(tmp_path / "m.gguf", "llama")) as file:
        tensor = file.tensors[name]
        wrong = replace(tensor, shape=(*tensor.shape[:-1], tensor.shape[-1] * 2))
        with pytest.raises(ModelFileError, match=rf"{name} has shape .*{wrong.shape[-1]}.*{tensor.shape[-1]}"):
            read(ChangedFile(file, **{name.replace(".", "__"): wrong}))


def test_a_tensor_without_use_is_refused(tmp_path: Path) -> None:
    with GGUFFile(write_tiny(tmp_path / "m.gguf", "llama")) as file, pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_sinks"):
        read(ChangedFile(file, blk__0__attn_sinks__weight=file.tensors["output_norm.weight"]))
