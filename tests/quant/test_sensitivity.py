"""Predicted damages against divergences of models that really have the coarse tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import write_variant

from edgelm.backends.block_steps import BlockSteps
from edgelm.backends.reference import ReferenceModel
from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.blocks import F32, FORMATS, IQ4_NL, Q4_0, Q4_1, Q5_0, Q6_K, Q8_0
from edgelm.quant.divergence import divergence
from edgelm.quant.format_trial import FormatTrials
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.matrix import LinearInputs
from edgelm.quant.mixed_precision import Budget, Choice, TensorOptions, choose_formats
from edgelm.quant.model_file import ModelFile, Tensor
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.sensitivity import CANDIDATES, measure_options
from edgelm.quant.tensor_formats import is_vector
from edgelm.quant.work_folder import open_or_create

WINDOWS = np.random.default_rng(1).integers(3, 280, (2, 32)).astype(np.int32)
THREADS = RowThreads(1)


@dataclass(frozen=True)
class Changed:
    """A model with some tensors replaced; a ModelFile."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def drop_pages(self) -> None: ...
    def close(self) -> None: ...


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return tmp_path


def opened(folder: Path, variant: str, **changes: Any) -> GGUFFile:
    return GGUFFile(write_variant(folder / "m.gguf", variant, **changes))


def measure(
    file: ModelFile, folder: Path, candidates: tuple[BlockFormat, ...] = CANDIDATES, said: list[tuple[str, int, int]] | None = None
) -> dict[str, TensorOptions]:
    with open_or_create(folder / "damages.json", {}, restart=True) as work:
        say = (lambda *_: None) if said is None else (lambda *line: said.append(line))
        steps, trials = BlockSteps(file, WINDOWS.shape[1]), FormatTrials(candidates, THREADS)
        return {each.name: each for each in measure_options(steps, file.tensors, WINDOWS, trials, work, say)}


def damages(options: TensorOptions) -> dict[str, float]:
    return {choice.format: choice.error for choice in options.choices}


def diverged(file: ModelFile, replaced: Mapping[str, Tensor]) -> float:
    """Mean KL of the model with these tensors, over the windows."""
    models = ReferenceModel(file), ReferenceModel(Changed(file.path, file.metadata, {**file.tensors, **replaced}))
    judge, other = (np.concatenate([model.logits(window) for window in WINDOWS]) for model in models)
    return divergence(judge, other).mean_kl


def inputs_of(file: ModelFile) -> dict[str, LinearInputs]:
    """Of every linear layer and of the output layer, which may be the embedding, in the float model."""
    steps, found = BlockSteps(file, WINDOWS.shape[1]), {}
    stream = steps.embed(WINDOWS, {})
    for layer in range(steps.n_layers):
        state = steps.begin(layer, stream, {})
        for names, step in zip(steps.linear_groups(layer), steps.steps(layer, {}), strict=True):
            inputs = LinearInputs(np.mean(np.square(state.inputs.reshape(-1, state.inputs.shape[-1])), axis=0))
            found |= dict.fromkeys(names, inputs)
            state = step(state)
        stream = state.stream
    last = steps.end(stream).inputs
    output = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
    return found | {output: LinearInputs(np.mean(np.square(last.reshape(-1, last.shape[-1])), axis=0))}


def quantized(file: ModelFile, formats: Mapping[str, BlockFormat]) -> dict[str, Tensor]:
    """Tensors by scale search, as the probes are."""
    inputs, found = inputs_of(file), {}
    for name, block_format in formats.items():
        coarse = FormatTrials((block_format,), THREADS).on_rows(file.tensors[name], np.arange(1), inputs.get(name)).coarse
        assert coarse is not None
        found[name] = coarse
    return found


def matrices(file: ModelFile) -> list[str]:
    return [name for name, tensor in file.tensors.items() if not is_vector(name, tensor.shape)]


@pytest.mark.parametrize("variant", ["llama", "llama-untied", "phi3", "gemma3"])
def test_the_damage_of_a_coarse_group_is_measured_and_shared_out(folder: Path, variant: str) -> None:
    with opened(folder, variant, n_layers=2) as file:
        options = measure(file, folder, (Q4_0,))
        assert sorted(options) == sorted(matrices(file))
        groups = [group for layer in range(2) for group in BlockSteps(file, 32).linear_groups(layer)]
        ends = [("token_embd.weight",), ("output.weight",)]
        for names in [*groups, *(names for names in ends if names[0] in file.tensors)]:
            found = [damages(options[name])["Q4_0"] for name in names]
            assert min(found) > 0
            assert sum(found) == pytest.approx(diverged(file, quantized(file, dict.fromkeys(names, Q4_0))), rel=5e-3)


def test_within_a_group_the_share_follows_what_each_tensor_does_alone(folder: Path) -> None:
    """Random models have no such structure as trained ones, but what goes through softmax counts for less than what does not."""
    with opened(folder, "llama", n_layers=2) as file:
        options = measure(file, folder, (Q4_0,))
        for layer in range(2):
            names = [f"blk.{layer}.attn_{part}.weight" for part in "qkv"]
            alone = [diverged(file, quantized(file, {name: Q4_0})) for name in names]
            found = [damages(options[name])["Q4_0"] for name in names]
            np.testing.assert_allclose(np.array(found) / sum(found), np.array(alone) / sum(alone), atol=0.12)


def test_other_formats_are_predicted_from_the_coarse_one(folder: Path) -> None:
    with opened(folder, "llama-untied", n_layers=2) as file:
        formats = (Q4_0, IQ4_NL, Q4_1, Q8_0)
        options = measure(file, folder, formats)
        for name in ("token_embd.weight", "blk.0.attn_v.weight", "blk.1.ffn_down.weight", "output.weight"):
            for block_format in formats:
                measured = diverged(file, quantized(file, {name: block_format}))
                assert damages(options[name])[block_format.name] == pytest.approx(measured, rel=0.4)


def test_damages_add_up_to_that_of_a_whole_model_and_of_a_mixed_plan(folder: Path) -> None:
    with opened(folder, "llama", n_layers=2) as file:
        options = tuple(measure(file, folder, (Q4_0, Q4_1, Q5_0, Q8_0)).values())
        for bits in (5.0, 5.5, 6.5):
            plan = choose_formats(options, Budget("bits per weight", bits))
            assert len(set(plan.formats.values())) > 1
            assert plan.error == pytest.approx(diverged(file, quantized(file, plan.formats)), rel=0.35)


def test_every_format_that_fits_is_offered_with_its_bytes(folder: Path) -> None:
    with opened(folder, "llama", n_embd=256, n_ff=80, n_layers=1) as file:
        options = measure(file, folder, (Q4_0, Q5_0, Q6_K, Q8_0))
        assert list(damages(options["blk.0.attn_q.weight"])) == ["Q4_0", "Q5_0", "Q6_K", "Q8_0"]
        assert list(damages(options["token_embd.weight"])) == ["Q4_0", "Q5_0", "Q6_K", "Q8_0"]
        for tensor in options.values():
            assert all(choice.n_bytes == FORMATS[choice.format].nbytes(tensor.shape) for choice in tensor.choices)
        errors = damages(options["token_embd.weight"])
        assert errors["Q4_0"] > errors["Q5_0"] > errors["Q6_K"] > errors["Q8_0"] > 0
        assert options["blk.0.ffn_down.weight"].choices == (Choice("F16", 2 * 256 * 80, 0.0),)


def test_a_tensor_that_lies_on_a_candidates_grid_costs_nothing_there(folder: Path) -> None:
    with opened(folder, "llama", format="Q4_0", n_layers=1) as file:
        up = damages(measure(file, folder, (Q4_0, Q4_1))["blk.0.ffn_up.weight"])
        assert up["Q4_0"] < 1e-4 * up["Q4_1"]


def test_without_effect_there_is_no_damage(folder: Path) -> None:
    with opened(folder, "llama", n_layers=1) as file:
        zeros = {name: _zeros(file.tensors[name]) for name in ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight")}
        options = measure(Changed(file.path, file.metadata, {**file.tensors, **zeros}), folder, (Q4_0, Q8_0))
        for name in (*zeros, "blk.0.ffn_down.weight"):
            assert set(damages(options[name]).values()) == {0.0}


def test_progress_goes_up_to_nearly_the_end(folder: Path) -> None:
    said: list[tuple[str, int, int]] = []
    with opened(folder, "llama") as file:
        measure(file, folder, (Q4_0,), said)
    texts, done, totals = zip(*said, strict=True)
    assert texts == ("probing block 1 of 3", "probing block 2 of 3", "probing block 3 of 3", "comparing predictions")
    assert list(done) == sorted(set(done))
    assert done[0] == 0
    assert done[-1] < totals[-1]
    assert len(set(totals)) == 1


class StoppedError(Exception):
    """Whatever ends the work."""


@pytest.mark.parametrize("variant", ["llama", "llama-untied"])
def test_interrupted_work_goes_on_after_the_last_whole_block(folder: Path, variant: str) -> None:
    """Stopped after the first block, within the second, within the third and while predictions are compared."""
    said: list[str] = []

    def passed() -> None:
        if said == ["probing block 1 of 3"]:
            raise StoppedError

    def say(what: str, *_: int) -> None:
        said.append(what)
        if what != "probing block 1 of 3" and said.count(what) == 1:
            raise StoppedError

    with opened(folder, variant) as file:
        wanted = measure(file, folder, (Q4_0, Q8_0))
        open_or_create(folder / "damages.json", {}, restart=True).close()

        def go_on() -> dict[str, TensorOptions]:
            steps, trials = BlockSteps(file, WINDOWS.shape[1]), FormatTrials((Q4_0, Q8_0), THREADS)
            with open_or_create(folder / "damages.json", {}) as work:
                return {each.name: each for each in measure_options(steps, file.tensors, WINDOWS, trials, work, say, passed)}

        for _ in range(4):
            with pytest.raises(StoppedError):
                go_on()
        assert go_on() == wanted
    assert said == [*(f"probing block {n} of 3" for n in (1, 2, 2, 3, 3)), *["comparing predictions"] * 2]


def test_damaged_weights_are_named(folder: Path) -> None:
    with opened(folder, "llama") as file:
        name = "blk.1.ffn_down.weight"
        values = file.tensors[name].dequantize()
        values[2, 3] = np.nan
        damaged = {**file.tensors, name: _tensor(name, values)}
        with pytest.raises(InvalidRequestError, match=r"blk\.1\.ffn_down\.weight: .*not a number"):
            measure(Changed(file.path, file.metadata, damaged), folder)


def test_nothing_to_choose_from_or_to_measure_with_is_refused(folder: Path) -> None:
    with opened(folder, "llama") as file, open_or_create(folder / "damages.json", {}) as work:
        steps = BlockSteps(file, 32)
        for windows, candidates in ((WINDOWS, ()), (WINDOWS[:0], CANDIDATES)):
            with pytest.raises(InvalidRequestError, match="no formats to choose from, or no tokens"):
                measure_options(steps, file.tensors, windows, FormatTrials(candidates, THREADS), work, lambda *_: None)


def _zeros(tensor: Tensor) -> Tensor:
    return _tensor(tensor.name, np.zeros(tensor.shape, np.float32))


def _tensor(name: str, values: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
    return Tensor(name, values.shape, F32, values.reshape(-1).view(np.uint8))
