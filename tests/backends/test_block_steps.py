"""The forward pass in steps against the plain one."""

from pathlib import Path

import numpy as np
import pytest
from tiny_models import VARIANTS, write_variant

from edgelm.backends.block_steps import BlockSteps
from edgelm.backends.reference import Array, ReferenceModel
from edgelm.quant.blocks import F32
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.model_file import Tensor

WINDOWS = np.random.default_rng(1).integers(3, 280, (2, 24)).astype(np.int32)


def last_inputs(steps: BlockSteps) -> Array:
    """What enters the output layer, [n_windows, n, n_embd]."""
    stream = steps.embed(WINDOWS, {})
    for layer in range(steps.n_layers):
        state = steps.begin(layer, stream, {})
        for step in steps.steps(layer, {}):
            state = step(state)
        stream = state.stream
    return steps.end(stream).inputs


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_and_logits_in_pieces_are_the_reference(tmp_path: Path, variant: str) -> None:
    with GGUFFile(write_variant(tmp_path / "m.gguf", variant)) as file:
        steps, model = BlockSteps(file, WINDOWS.shape[1]), ReferenceModel(file, WINDOWS.shape[1])
        inputs = last_inputs(steps)
        pieces = [steps.logits(inputs, slice(start, start + 100), {}) for start in range(0, steps.n_vocab, 100)]
        wanted = np.stack([model.logits(window) for window in WINDOWS])
        np.testing.assert_allclose(np.concatenate(pieces, axis=-1), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("variant", ["llama", "llama-untied"])
def test_a_replaced_output_layer_gives_its_own_logits(tmp_path: Path, variant: str) -> None:
    with GGUFFile(write_variant(tmp_path / "m.gguf", variant)) as file:
        steps = BlockSteps(file, WINDOWS.shape[1])
        weight = file.tensors.get("output.weight", file.tensors["token_embd.weight"])
        doubled = Tensor(weight.name, weight.shape, F32, (2 * weight.dequantize()).reshape(-1).view(np.uint8))
        inputs, some = np.ones((3, weight.shape[1]), np.float32), slice(5, 9)
        np.testing.assert_array_equal(steps.logits(inputs, some, {weight.name: doubled}), 2 * steps.logits(inputs, some, {}))
