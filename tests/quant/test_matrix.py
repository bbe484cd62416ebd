"""Matrices by every method in every format; corrected targets; weights and inputs that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from quantizer_cases import Array, error, inputs_of, mean_product, some_inputs, some_weights

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.blocks import BF16, F16, F32, FORMATS, Q4_0, Q4_K
from edgelm.quant.grid_formats import GRID_FORMATS
from edgelm.quant.matrix import LinearInputs, Method, QuantizedMatrix, quantize_by_what_is_known, quantize_matrix
from edgelm.quant.row_threads import RowThreads

QUANTIZED = pytest.mark.parametrize("block", [form.block for form in GRID_FORMATS.values()], ids=GRID_FORMATS)
METHODS = pytest.mark.parametrize("name", ["round", "search", "gptq"])


def quantized(
    weights: Array, block: BlockFormat, method: Method, inputs: LinearInputs | None = None, n_threads: int = 1
) -> QuantizedMatrix:
    with RowThreads(n_threads) as threads:
        return quantize_matrix(weights, block, method, inputs, threads)


def values(matrix: QuantizedMatrix, weights: Array) -> Array:
    return matrix.format.dequantize(matrix.data).reshape(weights.shape)


@METHODS
@QUANTIZED
def test_the_error_is_that_of_the_blocks_outputs(block: BlockFormat, name: str) -> None:
    weights, b = some_weights(110, 256), some_inputs(500, 256)  # more rows than are computed at a time
    matrix = quantized(weights, block, Method(name, n_sweeps=1), inputs_of(b))  # type: ignore[arg-type]
    assert matrix.format is block
    assert matrix.data.dtype == np.uint8
    assert matrix.data.shape == (block.nbytes(weights.shape),)
    hessian = mean_product(b, b)
    lost, energy = (error(x, hessian).sum() for x in (weights - values(matrix, weights), weights))
    assert matrix.error == pytest.approx(lost / energy, rel=2e-3)
    assert matrix.energy == pytest.approx(energy, rel=1e-3)
    assert 0 < matrix.error < 0.05


@pytest.mark.parametrize("name", ["round", "search"])
def test_errors_without_outer_products_and_without_inputs(name: str) -> None:
    weights = some_weights(5, 64)
    squares = np.random.default_rng(0).uniform(0.1, 3, 64).astype(np.float32)
    for inputs, h in ((LinearInputs(squares), squares), (None, np.ones(64))):
        matrix = quantized(weights, Q4_0, Method(name), inputs)  # type: ignore[arg-type]
        lost = np.square(weights - values(matrix, weights)) @ h
        assert matrix.error == pytest.approx(lost.sum() / (np.square(weights) @ h).sum(), rel=1e-4)


@QUANTIZED
def test_each_method_is_better_than_the_one_before(block: BlockFormat) -> None:
    weights, b = some_weights(16, 256), some_inputs(600, 256)
    inputs = inputs_of(b)
    by = {name: quantized(weights, block, Method(name), inputs).error for name in ("round", "search", "gptq")}  # type: ignore[arg-type]
    undescended = quantized(weights, block, Method("gptq", n_sweeps=0), inputs).error
    assert by["search"] < by["round"]
    assert by["gptq"] < undescended < 0.6 * by["search"]


@pytest.mark.parametrize("block", FORMATS.values(), ids=FORMATS)
def test_rounding_is_the_format_s_own(block: BlockFormat) -> None:
    weights = some_weights(100, 256)
    np.testing.assert_array_equal(quantized(weights, block, Method("round")).data, block.quantize(weights))


@pytest.mark.parametrize("block", [F32, F16, BF16], ids=repr)
@METHODS
def test_floats_are_rounded_whatever_the_method(block: BlockFormat, name: str) -> None:
    weights = some_weights(3, 50)
    matrix = quantized(weights, block, Method(name))  # type: ignore[arg-type]
    np.testing.assert_array_equal(matrix.data, block.quantize(weights))
    assert matrix.error < 1e-4


@QUANTIZED
def test_the_same_whatever_the_threads(block: BlockFormat) -> None:
    weights, inputs = some_weights(200, 256), inputs_of(some_inputs(300, 256))
    one, *others = (quantized(weights, block, Method(n_sweeps=1), inputs, n_threads) for n_threads in (1, 2, 3))
    for other in others:
        np.testing.assert_array_equal(one.data, other.data)
        assert one.error == other.error


@pytest.mark.parametrize("n_in", [32, 96, 160])
def test_widths_that_are_no_multiple_of_the_steps(n_in: int) -> None:
    weights, inputs = some_weights(5, n_in), inputs_of(some_inputs(500, n_in))
    assert quantized(weights, Q4_0, Method(), inputs).error < 0.01


@METHODS
@QUANTIZED
def test_rows_of_zeros_and_of_one_value_and_dead_inputs(block: BlockFormat, name: str) -> None:
    weights, b = some_weights(6, 256), some_inputs(500, 256)
    weights[1], weights[3] = 0, -0.125
    b[:, 100:140] = 0
    matrix = quantized(weights, block, Method(name), inputs_of(b))  # type: ignore[arg-type]
    result = values(matrix, weights)
    assert (result[1] == 0).all()
    np.testing.assert_allclose(result[3], weights[3], rtol=0.05)  # one level of Q6_K, which may make up for others
    assert np.abs(result - weights).max() < 0.3 * np.abs(weights).max()


def test_a_matrix_of_zeros_has_no_error() -> None:
    matrix = quantized(np.zeros((3, 32), np.float32), Q4_0, Method("search"))
    assert (matrix.error, matrix.energy) == (0, 0)


@pytest.mark.parametrize("n_tokens", [30, 2000])
def test_the_target_is_the_least_squares_solution(n_tokens: int) -> None:
    """Ridge regression of the outputs W a on b, drawn towards W, solved over the tokens in float64."""
    n_in, damping = 96, 0.01
    weights, a = some_weights(7, n_in), some_inputs(n_tokens, n_in)
    b = (a + 0.2 * some_inputs(n_tokens, n_in, seed=5)).astype(np.float32)
    target = inputs_of(b, a, damping).target(weights)
    wide_a, wide_b, wide_w = (x.astype(np.float64) for x in (a, b, weights))
    pull = np.sqrt(damping * np.square(wide_b).sum(axis=0).mean()) * np.eye(n_in)
    left, right = np.concatenate([wide_b, pull]), np.concatenate([wide_a @ wide_w.T, pull @ wide_w.T])
    wanted = np.linalg.lstsq(left, right, rcond=None)[0].T
    assert np.abs(wanted - weights).max() > 0.05 * np.abs(weights).max()
    np.testing.assert_allclose(target, wanted, atol=2e-3 * np.abs(wanted - weights).max())


def test_correcting_comes_nearer_to_the_float_outputs() -> None:
    weights, a = some_weights(20, 96), some_inputs(2000, 96)
    b = (a + 0.1 * some_inputs(2000, 96, seed=5)).astype(np.float32)
    lost = []
    for inputs in (inputs_of(b), inputs_of(b, a)):
        result = values(quantized(weights, Q4_0, Method(), inputs), weights)
        lost.append(np.square(b @ result.T - a @ weights.T).mean())
    assert lost[1] < 0.8 * lost[0]


def test_equal_inputs_need_no_correction() -> None:
    weights, b = some_weights(5, 64), some_inputs(300, 64)
    np.testing.assert_array_equal(inputs_of(b, b).target(weights), weights)
    np.testing.assert_array_equal(inputs_of(b).target(weights), weights)


def test_inputs_of_zeros_have_no_hessian() -> None:
    inputs = inputs_of(np.zeros((50, 64), np.float32))
    assert inputs.hessian is inputs.factor is None
    with RowThreads(1) as threads:
        matrix = quantize_by_what_is_known(some_weights(3, 64), Q4_0, Method(), inputs, threads)
    assert "zero throughout the calibration text" in matrix.note
    assert matrix.error < 0.02


@QUANTIZED
def test_fewer_tokens_than_inputs(block: BlockFormat) -> None:
    weights, b = some_weights(5, 256), some_inputs(20, 256)
    inputs = inputs_of(b)
    assert inputs.factor is not None
    assert inputs.factor.damping == 0.01
    assert quantized(weights, block, Method(), inputs).error < quantized(weights, block, Method("search"), inputs).error


@METHODS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 150])
def test_weights_that_are_not_finite(name: str, value: float, row: int) -> None:
    weights = some_weights(200, 32)
    weights[row, 7] = value
    with pytest.raises(InvalidRequestError, match=r"weights that are infinite or not a number; the source is damaged"):
        quantized(weights, Q4_0, Method(name), inputs_of(some_inputs(100, 32)))  # type: ignore[arg-type]


@METHODS
@QUANTIZED
@pytest.mark.parametrize("size", [1e9, 1e38])
def test_weights_that_are_too_large(name: str, block: BlockFormat, size: float) -> None:
    weights = some_weights(100, 256)
    weights[98, 7] = size
    with pytest.raises(InvalidRequestError, match=r"too large|cannot be"):
        quantized(weights, block, Method(name), inputs_of(some_inputs(40, 256)))  # type: ignore[arg-type]


def test_what_gptq_needs() -> None:
    weights = some_weights(3, 32)
    for inputs in (None, LinearInputs(np.ones(32, np.float32))):
        with pytest.raises(InvalidRequestError, match="GPTQ needs the outer products of the layer's inputs"):
            quantized(weights, Q4_0, Method(), inputs)


@METHODS
def test_inputs_of_another_width(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="the weights take 64 inputs, but the calibration knows 32"):
        quantized(some_weights(3, 64), Q4_0, Method(name), inputs_of(some_inputs(100, 32)))  # type: ignore[arg-type]


@METHODS
def test_rows_that_are_not_whole_blocks(name: str) -> None:
    with pytest.raises(ModelFileError, match="rows of 160 values cannot be Q4_K"):
        quantized(some_weights(3, 160), Q4_K, Method(name), inputs_of(some_inputs(200, 160)))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"name": "awq"}, {"n_sweeps": -1}, {"damping": 0}, {"damping": 1.0}])
def test_methods_that_make_no_sense(bad: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match="give one of round, search, gptq"):
        Method(**bad)  # type: ignore[arg-type]
