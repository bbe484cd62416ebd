"""GPTQ against a loop over columns in float64, and where it is nothing but rounding."""

from __future__ import annotations

import numpy as np
import pytest
from quantizer_cases import Array, damped, error, mean_product, slow_gptq, some_inputs, some_weights

from edgelm.quant.gptq import gptq
from edgelm.quant.grid import Grid, GridFormat
from edgelm.quant.grid_formats import GRID_FORMATS
from edgelm.quant.hessian import InverseFactor, factorize
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scale_search import search_scales

ALL = pytest.mark.parametrize("form", GRID_FORMATS.values(), ids=GRID_FORMATS)


def factor_of(hessian: Array, damping: float = 0.01) -> InverseFactor:
    with RowThreads(1) as threads:
        return factorize(hessian.copy(), damping, threads)


def grid_of(weights: Array, form: GridFormat) -> Grid:
    return search_scales(weights, np.ones(weights.shape[1], np.float32), form)


@ALL
@pytest.mark.parametrize("n_in", [32, 160])
def test_the_codes_are_those_of_the_paper(form: GridFormat, n_in: int) -> None:
    if n_in % form.block.n_elements:
        n_in = 256
    weights, b = some_weights(4, n_in), some_inputs(3 * n_in, n_in)
    hessian = mean_product(b, b)
    grid = grid_of(weights, form)
    codes = gptq(weights, factor_of(hessian), grid)
    wanted, ties = slow_gptq(weights, damped(hessian, 0.01), grid)
    order = np.argsort(-hessian.diagonal(), kind="stable")
    certain = np.empty_like(ties)
    certain[:, order] = ~np.logical_or.accumulate(ties[:, order], axis=1)
    assert certain.mean() > 0.3
    np.testing.assert_array_equal(codes[certain], wanted[certain])


@ALL
def test_uncorrelated_inputs_leave_nothing_but_rounding(form: GridFormat) -> None:
    weights = some_weights(7, 512)
    grid = grid_of(weights, form)
    diagonal = np.random.default_rng(1).uniform(0.1, 5, 512).astype(np.float32)
    for hessian in (np.eye(512, dtype=np.float32), np.diag(diagonal)):
        np.testing.assert_array_equal(gptq(weights, factor_of(hessian), grid), grid.nearest(weights))


@ALL
def test_less_error_than_rounding_on_the_same_grid(form: GridFormat) -> None:
    weights, b = some_weights(20, 256), some_inputs(1000, 256)
    hessian, grid = mean_product(b, b), grid_of(weights, form)
    codes, rounded = gptq(weights, factor_of(hessian), grid), grid.nearest(weights)
    compensated, plain = (error(weights - grid.values(each), hessian).sum() for each in (codes, rounded))
    assert compensated < 0.6 * plain


@ALL
def test_rows_without_scales_and_dead_inputs(form: GridFormat) -> None:
    weights, b = some_weights(5, 256), some_inputs(900, 256)
    weights[2] = 0
    b[:, 10:60] = 0
    hessian, grid = mean_product(b, b), grid_of(weights, form)
    codes = gptq(weights, factor_of(hessian), grid)
    values = grid.values(codes)
    assert (values[2] == 0).all()
    dead = slice(10, 60)  # what nothing depends on is rounded to the nearest
    np.testing.assert_array_equal(codes[:, dead], grid.nearest(weights)[:, dead])


def test_rows_do_not_depend_on_each_other() -> None:
    form, weights, b = GRID_FORMATS["Q4_0"], some_weights(9, 160), some_inputs(500, 160)
    hessian = mean_product(b, b)
    factor, grid = factor_of(hessian), grid_of(weights, form)
    alone = [gptq(weights[i : i + 1], factor, grid_of(weights[i : i + 1], form)) for i in range(9)]
    assert (np.concatenate(alone) == gptq(weights, factor, grid)).mean() > 0.999


def test_fewer_tokens_than_channels() -> None:
    form, weights, b = GRID_FORMATS["Q4_0"], some_weights(9, 256), some_inputs(40, 256)
    hessian, grid = mean_product(b, b), grid_of(some_weights(9, 256), form)
    codes = gptq(weights, factor_of(hessian), grid)
    plain = error(weights - grid.values(grid.nearest(weights)), hessian).sum()
    assert error(weights - grid.values(codes), hessian).sum() < 0.1 * plain
