"""Blocks quantized one after the other: each layer for the inputs that those before it leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from quantizer_cases import Array, inputs_of
from tiny_models import write_variant

from edgelm.backends.block_steps import BlockSteps
from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.blocks import F32, Q4_0
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.matrix import LinearInputs, Method, QuantizedMatrix, quantize_matrix
from edgelm.quant.model_file import Tensor
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scratch import Scratch
from edgelm.quant.sequential import output_inputs, quantize_block, start_paths

N_WINDOW = 48
WINDOWS, OTHERS = (np.random.default_rng(seed).integers(3, 60, (12, N_WINDOW)).astype(np.int32) for seed in (0, 1))
Replaced = Mapping[str, Tensor]


@dataclass(frozen=True)
class Model:
    """A tiny model in steps."""

    file: GGUFFile
    steps: BlockSteps

    @property
    def names(self) -> list[str]:
        """Of the linear layers, in order."""
        return [name for layer in range(self.steps.n_layers) for names in self.steps.linear_groups(layer) for name in names]

    def weights(self, name: str) -> Array:
        return self.file.tensors[name].dequantize()

    def inputs(self, windows: Array, replaced: Replaced) -> dict[str, Array]:
        """What enters each linear layer and, as "output", the output layer; [n_tokens, n_in] each."""
        found, stream = {}, self.steps.embed(windows, {})
        for layer in range(self.steps.n_layers):
            state = self.steps.begin(layer, stream, replaced)
            for names, step in zip(self.steps.linear_groups(layer), self.steps.steps(layer, replaced), strict=True):
                found |= dict.fromkeys(names, state.inputs.reshape(-1, state.inputs.shape[-1]))
                state = step(state)
            stream = state.stream
        return found | {"output": self.steps.end(stream).inputs.reshape(-1, stream.shape[-1])}


@pytest.fixture(params=["llama", "gemma3", "phi3"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Model]:
    with GGUFFile(write_variant(tmp_path / "m.gguf", request.param, n_layers=2)) as file:
        yield Model(file, BlockSteps(file, N_WINDOW))


@pytest.fixture
def llama(tmp_path: Path) -> Iterator[Model]:
    with GGUFFile(write_variant(tmp_path / "m.gguf", "llama", n_layers=2)) as file:
        yield Model(file, BlockSteps(file, N_WINDOW))


def quantize(
    model: Model,
    folder: Path,
    method: Method,
    *,
    n_batch: int = 4,
    n_threads: int = 1,
    formats: Mapping[str, BlockFormat] | None = None,
    done: Replaced | None = None,
) -> tuple[dict[str, QuantizedMatrix], LinearInputs]:
    """All blocks' results in the order in which they were finished, and what is known of the output layer's inputs."""
    found: dict[str, QuantizedMatrix] = {}
    formats = dict.fromkeys(model.names, Q4_0) if formats is None else formats
    with RowThreads(n_threads) as threads, Scratch(folder) as scratch:
        paths = start_paths(model.steps, WINDOWS, n_batch, scratch, {})
        for layer in range(model.steps.n_layers):
            prefix = f"blk.{layer}."
            tensors = {name: tensor for name, tensor in model.file.tensors.items() if name.startswith(prefix)}
            own = {name: block for name, block in formats.items() if name.startswith(prefix)}
            quantize_block(paths, layer, tensors, own, method, threads, found.__setitem__, done or {})
        return found, output_inputs(paths, method, threads)


def tensors_of(found: Mapping[str, QuantizedMatrix], model: Model) -> dict[str, Tensor]:
    return {name: Tensor(name, model.file.tensors[name].shape, matrix.format, matrix.data) for name, matrix in found.items()}


def likeness(one: QuantizedMatrix, other: QuantizedMatrix) -> float:
    """Share of equal bytes."""
    return float((one.data == other.data).mean())


def test_rounding_is_the_format_s_own_in_the_model_s_order(model: Model, tmp_path: Path) -> None:
    found, _ = quantize(model, tmp_path, Method("round"))
    assert list(found) == model.names
    for name, matrix in found.items():
        np.testing.assert_array_equal(matrix.data, Q4_0.quantize(model.weights(name)))


def test_each_layer_is_quantized_for_the_inputs_that_quantized_layers_leave(model: Model, tmp_path: Path) -> None:
    found, last = quantize(model, tmp_path, Method("search"))
    real, plain = model.inputs(WINDOWS, tensors_of(found, model)), model.inputs(WINDOWS, {})
    unlike = 0
    with RowThreads(1) as threads:
        for name, matrix in found.items():
            squares = [np.square(inputs[name].astype(np.float64)).mean(axis=0).astype(np.float32) for inputs in (real, plain)]
            again, other = (quantize_matrix(model.weights(name), Q4_0, Method("search"), LinearInputs(h), threads) for h in squares)
            assert likeness(matrix, again) > 0.998
            unlike += likeness(matrix, other) < 0.998
    assert unlike > len(found) / 2
    np.testing.assert_allclose(last.squares, np.square(real["output"]).mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize("corrects", [True, False])
def test_gptq_knows_both_models_inputs(llama: Model, tmp_path: Path, corrects: bool) -> None:
    method = Method(n_sweeps=0, damping=0.01, corrects=corrects)
    found, _ = quantize(llama, tmp_path, method)
    b, a = llama.inputs(WINDOWS, tensors_of(found, llama)), llama.inputs(WINDOWS, {})
    likenesses: dict[bool, list[float]] = {True: [], False: []}
    with RowThreads(1) as threads:
        for name, matrix in found.items():
            for knows_both in (True, False):
                inputs = inputs_of(b[name], a[name] if knows_both else None)
                likenesses[knows_both].append(likeness(matrix, quantize_matrix(llama.weights(name), Q4_0, method, inputs, threads)))
    # Near ties fall either way by the last bit of a sum, and then what follows in their row.
    assert np.mean(likenesses[corrects]) > 0.97
    assert np.mean(likenesses[corrects]) > np.mean(likenesses[not corrects]) + 0.05


def kl(model: Model, replaced: Replaced) -> float:
    """Mean KL divergence of the predictions on text that was not calibrated on, in nats."""
    logits = [model.steps.logits(model.inputs(OTHERS, weights)["output"], slice(None), {}).astype(np.float64) for weights in ({}, replaced)]
    log_p, log_q = (x - x.max(axis=-1, keepdims=True) - np.log(np.exp(x - x.max(axis=-1, keepdims=True)).sum(-1))[:, None] for x in logits)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean())


def test_gptq_with_correction_is_nearest_to_the_float_model(model: Model, tmp_path: Path) -> None:
    lost, on_calibration = [], []
    plain = model.inputs(WINDOWS, {})["output"]
    for method in (Method("round"), Method("search"), Method("gptq", corrects=False), Method("gptq")):
        replaced = tensors_of(quantize(model, tmp_path, method)[0], model)
        on_calibration.append(np.square(model.inputs(WINDOWS, replaced)["output"] - plain).mean())
        lost.append(kl(model, replaced))
    assert on_calibration[3] < on_calibration[2] < on_calibration[1] < on_calibration[0]
    assert max(lost[2:]) < lost[1] < lost[0]


def test_the_same_whatever_the_threads(llama: Model, tmp_path: Path) -> None:
    results = []
    for n_threads in (1, 2, 3):
        with RowThreads(n_threads) as threads:
            own = Model(llama.file, BlockSteps(llama.file, N_WINDOW, threads))
            results.append(quantize(own, tmp_path, Method(n_sweeps=1), n_threads=n_threads)[0])
    for other in results[1:]:
        for name, matrix in results[0].items():
            np.testing.assert_array_equal(matrix.data, other[name].data)


@pytest.mark.parametrize("n_batch", [1, 5, 100])
def test_the_size_of_batches_hardly_matters(llama: Model, tmp_path: Path, n_batch: int) -> None:
    one, other = (quantize(llama, tmp_path, Method("search"), n_batch=n)[0] for n in (4, n_batch))
    assert min(likeness(one[name], other[name]) for name in one) > 0.998


def test_layers_without_a_format_stay_as_they_are(llama: Model, tmp_path: Path) -> None:
    formats = {name: Q4_0 for name in llama.names if "attn_v" not in name and not name.startswith("blk.1.ffn")}
    found, last = quantize(llama, tmp_path, Method("search"), formats=formats)
    assert list(found) == list(formats)
    real = llama.inputs(WINDOWS, tensors_of(found, llama))
    np.testing.assert_allclose(last.squares, np.square(real["output"]).mean(axis=0), rtol=1e-4)


def test_finished_layers_are_passed_over_but_count(llama: Model, tmp_path: Path) -> None:
    whole, _ = quantize(llama, tmp_path, Method("search"))
    done = {name: tensor for name, tensor in tensors_of(whole, llama).items() if name in llama.names[:5]}
    rest, _ = quantize(llama, tmp_path, Method("search"), done=done)
    assert list(rest) == llama.names[5:]
    for name, matrix in rest.items():
        np.testing.assert_array_equal(matrix.data, whole[name].data)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["round", "search", "gptq"])
def test_weights_that_are_not_finite_are_named(llama: Model, tmp_path: Path, value: float, method: str) -> None:
    name = "blk.1.ffn_gate.weight"
    weights = llama.weights(name)
    weights[3, 4] = value
    tensors = {**llama.file.tensors, name: Tensor(name, weights.shape, F32, weights.reshape(-1).view(np.uint8))}
    damaged = Model(llama.file, BlockSteps(llama.file, N_WINDOW))
    object.__setattr__(damaged, "file", type("File", (), {"tensors": tensors})())
    with pytest.raises(InvalidRequestError, match=r"^blk.1.ffn_gate.weight: there are weights that are infinite or not a number"):
        quantize(damaged, tmp_path, Method(method))  # type: ignore[arg-type]
