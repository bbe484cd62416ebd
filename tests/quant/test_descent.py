"""Descent: the error never rises, and where it ends no single code or scale is better."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from quantizer_cases import Array, damped, error, mean_product, some_inputs, some_weights

from edgelm.quant.descent import descend
from edgelm.quant.grid import Grid, GridFormat
from edgelm.quant.grid_formats import GRID_FORMATS
from edgelm.quant.scale_search import search_scales

ALL = pytest.mark.parametrize("form", GRID_FORMATS.values(), ids=GRID_FORMATS)
PLAIN = pytest.mark.parametrize("form", [f for f in GRID_FORMATS.values() if f.n_groups_per_block == 1], ids=lambda f: f.block.name)


def start(weights: Array, form: GridFormat) -> tuple[Grid, NDArray[np.uint8]]:
    grid = search_scales(weights, np.ones(weights.shape[1], np.float32), form)
    return grid, grid.nearest(weights)


@cache
def hessian_of(n_in: int, n_tokens: int = 1000, seed: int = 0) -> Array:
    b = some_inputs(n_tokens, n_in, seed)
    return damped(mean_product(b, b), 0.01)


@ALL
@pytest.mark.parametrize("n_in", [32, 160, 512])
def test_no_row_s_error_ever_rises(form: GridFormat, n_in: int) -> None:
    if n_in % form.block.n_elements:
        n_in = form.block.n_elements * max(1, n_in // 256)
    weights, hessian = some_weights(12, n_in), hessian_of(n_in)
    grid, codes = start(weights, form)
    before = error(weights - grid.values(codes), hessian)
    first = before.sum()
    for _ in range(3):
        grid, codes = descend(weights, hessian, grid, codes, 1)
        after = error(weights - grid.values(codes), hessian)
        assert (after <= before * (1 + 1e-4)).all()
        before = after
    assert before.sum() < 0.9 * first
    np.testing.assert_array_equal(form.block.dequantize(grid.pack(codes)).reshape(weights.shape), grid.values(codes))


@ALL
def test_some_sweeps_at_once_are_as_many_one_by_one(form: GridFormat) -> None:
    weights, hessian = some_weights(6, 512), hessian_of(512)
    grid, codes = start(weights, form)
    at_once = descend(weights, hessian, grid, codes, 3)
    for _ in range(3):
        grid, codes = descend(weights, hessian, grid, codes, 1)
    one, other = (error(weights - g.values(c), hessian).sum() for g, c in (at_once, (grid, codes)))
    assert one == pytest.approx(other, rel=1e-2)


@ALL
def test_no_sweeps_change_nothing(form: GridFormat) -> None:
    weights, hessian = some_weights(3, 512), hessian_of(512)
    grid, codes = start(weights, form)
    same, also = descend(weights, hessian, grid, codes, 0)
    np.testing.assert_array_equal(also, codes)
    np.testing.assert_array_equal(same.values(also), grid.values(codes))


@ALL
def test_in_the_end_no_single_code_is_better(form: GridFormat) -> None:
    n_in = form.block.n_elements
    weights, hessian = some_weights(2, n_in), hessian_of(n_in)
    grid, codes = descend(weights, hessian, *start(weights, form), 60)
    least = error(weights - grid.values(codes), hessian)
    for column in np.unique(np.linspace(0, n_in - 1, 32).astype(int)):
        for code in {0, len(form.levels) - 1, *codes[:, column] - 1, *codes[:, column] + 1} & set(range(len(form.levels))):
            other = codes.copy()
            other[:, column] = code
            assert (error(weights - grid.values(other), hessian) >= least * (1 - 1e-4)).all()


@PLAIN
def test_in_the_end_no_single_scale_or_offset_is_better(form: GridFormat) -> None:
    weights, hessian = some_weights(3, 64), hessian_of(64)
    grid, codes = descend(weights, hessian, *start(weights, form), 60)
    least = error(weights - grid.values(codes), hessian)
    for group in range(2):
        for step in (-3, -1, 1, 3):
            for which in ("scales", "offsets"):
                scales = grid.scales.copy()
                offsets = None if grid.offsets is None else grid.offsets.copy()
                moved = scales if which == "scales" else offsets
                if moved is None:
                    continue
                moved[:, group] *= 1 + step * 2.0**-9
                other = form.round(scales, offsets)
                # Scales and offsets are rounded to float16, and move together with the other groups' before they are.
                assert (error(weights - other.values(codes), hessian) >= least * (1 - 2e-3)).all()


def test_on_a_tiny_problem_it_often_finds_the_very_best() -> None:
    """Four weights that matter, the scale fixed by one that is far larger than all: every combination is tried."""
    form = GRID_FORMATS["Q4_0"]
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        weights, hessian = np.zeros((1, 32), np.float32), np.eye(32, dtype=np.float32)
        weights[0, :4], weights[0, 4] = rng.uniform(-0.6, 0.6, 4), -8.0
        mixing = rng.standard_normal((4, 4))
        hessian[:4, :4] = mixing @ mixing.T / 4 + 0.3 * np.eye(4)
        hessian[4, 4] = 1e6
        first = form.round(np.ones((1, 1)))
        grid, codes = descend(weights, hessian, first, first.nearest(weights), 10)
        assert grid.scales[0, 0] == pytest.approx(1, rel=2e-3)
        residual = weights[0, :4] - grid.scales[0, 0] * np.stack(np.meshgrid(*[np.arange(-3, 4)] * 4), axis=-1).reshape(-1, 4)
        least = np.einsum("ni,ij,nj->n", residual, hessian[:4, :4], residual).min()
        own = (weights - grid.values(codes))[:, :4]
        found += float(error(own, hessian[:4, :4])[0]) < least + 1e-5
    assert found >= 10


@ALL
def test_zero_rows_and_constant_rows_stay_exact(form: GridFormat) -> None:
    weights, hessian = some_weights(4, 512), hessian_of(512)
    weights[1], weights[2] = 0, 0.25
    grid, codes = descend(weights, hessian, *start(weights, form), 3)
    np.testing.assert_allclose(grid.values(codes)[1:3], weights[1:3], rtol=0.01)


@ALL
def test_large_and_small_hessians_are_alike(form: GridFormat) -> None:
    weights, hessian = some_weights(6, 512), hessian_of(512)
    grid, codes = descend(weights, hessian, *start(weights, form), 2)
    for size in (2.0**-40, 2.0**40):
        other, codes_too = descend(weights, hessian * np.float32(size), *start(weights, form), 2)
        np.testing.assert_array_equal(codes, codes_too)
        np.testing.assert_array_equal(grid.scales, other.scales)
