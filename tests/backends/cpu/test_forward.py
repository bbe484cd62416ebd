"""The tape: which kernels a model needs, and that its writer refuses what no kernel reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import write_tiny

from edgelm.backends.config import read_config
from edgelm.backends.cpu.forward import ForwardPass, kernel_names, kv_type
from edgelm.backends.cpu.packed_weights import pack_weights
from edgelm.backends.cpu.records import JOB, MATMUL, NEVER, OP, SLOTS
from edgelm.backends.weights import read_tensors
from edgelm.quant.gguf_file import GGUFFile


def names(path: Path, precision: str) -> set[str]:
    file = GGUFFile(path)
    config = read_config(file.metadata)
    return kernel_names(config, pack_weights(read_tensors(file, config), config, file), precision)


def test_a_model_needs_the_kernels_of_its_formats_and_no_others(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf", "llama", format="Q4_1", embedding_format="F16")
    shared = {"norm", "quantize", "merge", "gate:silu", "embed_float:F16", "matmul_float:F16"}
    assert names(path, "int8") == shared | {"rotate:f16", "attend:f16", "matmul_int8:Q4_1"}
    assert names(path, "f32") == shared | {"rotate:f32", "attend:f32", "matmul_f32:Q4_1"}
    assert (kv_type("int8"), kv_type("f32")) == ("f16", "f32")


def test_the_tape_has_its_landmarks_in_order(tmp_path: Path) -> None:
    file = GGUFFile(write_tiny(tmp_path / "model.gguf", "gemma3"))
    config = read_config(file.metadata)
    weights = pack_weights(read_tensors(file, config), config, file)
    numbers: dict[str, int] = {}
    writer = ForwardPass(config, weights, (0,) * config.n_layers, "int8", 8, 64, 2, lambda name: numbers.setdefault(name, len(numbers) + 1))
    tape = writer.write()
    kernels = tape.operations[:, OP.kernel // 8]
    assert tape.operations.shape == (1 + 14 * config.n_layers + 2, SLOTS)
    assert (kernels == numbers["norm"]).sum() == 2 * config.n_layers + 1
    assert kernels[tape.n_layers_end] == numbers["norm"]
    assert tape.n_hidden_end == len(kernels) - 1
    assert list(tape.operations[tape.n_layers_end :, OP.rows // 8]) == [JOB.n_outputs] * 2


def test_wrong_arguments_of_a_kernel_are_refused(tmp_path: Path) -> None:
    file = GGUFFile(write_tiny(tmp_path / "model.gguf", "llama"))
    config = read_config(file.metadata)
    weights = pack_weights(read_tensors(file, config), config, file)
    writer = ForwardPass(config, weights, (0,) * config.n_layers, "int8", 8, 64, 1, lambda _name: 1)
    with pytest.raises(KeyError, match="n_runs"):
        writer._add("matmul_int8:Q4_0", MATMUL, NEVER, weights=1, bias=0)
