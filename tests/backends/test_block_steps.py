"""The forward pass in steps against the plain one."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import VARIANTS, write_variant

from edgelm.backends.block_steps import BlockSteps
from edgelm.backends.reference import Array, ReferenceModel
from edgelm.quant.blocks import F32
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.model_file import Tensor
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.stepped_model import State

LONGROPE = (("string", "rope.scaling.type", "longrope"), ("float32", "rope.scaling.attn_factor", 1.19))
WINDOWS = np.random.default_rng(1).integers(3, 280, (2, 24)).astype(np.int32)


def last_inputs(steps: BlockSteps, windows: NDArray[np.int32] = WINDOWS) -> Array:
    """What enters the output layer, [n_windows, n, n_embd]."""
    stream = steps.embed(windows, {})
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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [5, 100])
def test_windows_of_any_length_and_any_number_of_threads(tmp_path: Path, variant: str, n: int) -> None:
    """Shorter and longer than the sliding window, than a block of queries, and than what LongRoPE's short factors are for."""
    changes = {"extra": (*LONGROPE, ("uint32", "rope.scaling.original_context_length", 64))} if "longrope" in variant else {}
    windows = np.random.default_rng(n).integers(3, 280, (3, n)).astype(np.int32)
    with GGUFFile(write_variant(tmp_path / "m.gguf", variant, **changes)) as file:
        wanted = np.stack([ReferenceModel(file, n).hidden(window) for window in windows])
        results = []
        for n_threads in (1, 3):
            with RowThreads(n_threads) as threads:
                results.append(last_inputs(BlockSteps(file, n, threads), windows))
        np.testing.assert_allclose(results[0], wanted, atol=1e-5 * np.abs(wanted).max())
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_name_every_linear_layer_once_and_take_inputs_of_their_width(tmp_path: Path, variant: str) -> None:
    with GGUFFile(write_variant(tmp_path / "m.gguf", variant)) as file:
        steps = BlockSteps(file, WINDOWS.shape[1])
        for layer in range(steps.n_layers):
            groups = steps.linear_groups(layer)
            matrices = {name for name, tensor in file.tensors.items() if name.startswith(f"blk.{layer}.") and len(tensor.shape) == 2}
            assert [name for names in groups for name in names] == sorted(matrices, key=order)
            state = steps.begin(layer, steps.embed(WINDOWS, {}), {})
            for names, step in zip(groups, steps.steps(layer, {}), strict=True):
                assert {file.tensors[name].shape[1] for name in names} == {state.inputs.shape[-1]}
                state = step(state)


def order(name: str) -> int:
    parts = ["attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    return parts.index(name.split(".")[2])


@pytest.mark.parametrize("variant", ["llama", "llama-biases", "phi3", "gemma3"])
def test_each_replaced_layer_is_used_by_the_step_after_its_inputs(tmp_path: Path, variant: str) -> None:
    with GGUFFile(write_variant(tmp_path / "m.gguf", variant)) as file:
        steps = BlockSteps(file, WINDOWS.shape[1])
        stream = steps.embed(WINDOWS, {})
        for i, names in enumerate(steps.linear_groups(1)):
            for name in names:
                tensor = file.tensors[name]
                half = Tensor(name, tensor.shape, F32, (0.5 * tensor.dequantize()).reshape(-1).view(np.uint8))
                replaced: dict[str, Tensor] = {}
                own, other = (run_to(steps, stream, i, each) for each in ({}, replaced))
                np.testing.assert_array_equal(own.inputs, other.inputs)
                step = steps.steps(1, replaced)[i]
                replaced[name] = half  # looked at when the step runs
                assert not np.allclose(step(other).inputs, steps.steps(1, {})[i](own).inputs)


def run_to(steps: BlockSteps, stream: Array, n_steps: int, replaced: dict[str, Tensor]) -> State:
    state = steps.begin(1, stream, replaced)
    for step in steps.steps(1, replaced)[:n_steps]:
        state = step(state)
    return state


@pytest.mark.parametrize("variant", ["llama", "llama-untied"])
def test_a_replaced_output_layer_gives_its_own_logits(tmp_path: Path, variant: str) -> None:
    with GGUFFile(write_variant(tmp_path / "m.gguf", variant)) as file:
        steps = BlockSteps(file, WINDOWS.shape[1])
        weight = file.tensors.get("output.weight", file.tensors["token_embd.weight"])
        doubled = Tensor(weight.name, weight.shape, F32, (2 * weight.dequantize()).reshape(-1).view(np.uint8))
        inputs, some = np.ones((3, weight.shape[1]), np.float32), slice(5, 9)
        np.testing.assert_array_equal(steps.logits(inputs, some, {weight.name: doubled}), 2 * steps.logits(inputs, some, {}))
