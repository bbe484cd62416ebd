"""Rounding to a grid, nearest codes, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.grid import Grid, GridFormat
from edgelm.quant.grid_formats import GRID_FORMATS

ALL = pytest.mark.parametrize("form", GRID_FORMATS.values(), ids=GRID_FORMATS)
PLAIN = pytest.mark.parametrize("form", [f for f in GRID_FORMATS.values() if f.n_groups_per_block == 1], ids=lambda f: f.block.name)
SUPER = pytest.mark.parametrize("form", [f for f in GRID_FORMATS.values() if f.n_groups_per_block > 1], ids=lambda f: f.block.name)


def wishes(form: GridFormat, n_rows: int = 5, size: float = 0.01, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Scales and offsets for rows of 512 columns."""
    scales = size * np.random.default_rng(seed).uniform(0.3, 1, (n_rows, 512 // form.group_size))
    return scales, -7 * scales if form.has_offset else None


def rounded(form: GridFormat, **kwargs: Any) -> Grid:
    return form.round(*wishes(form, **kwargs))


@PLAIN
def test_plain_formats_round_to_float16(form: GridFormat) -> None:
    scales, offsets = wishes(form)
    grid = form.round(scales, offsets)
    np.testing.assert_array_equal(grid.scales, scales.astype(np.float16).astype(np.float32))
    if offsets is not None and grid.offsets is not None:
        np.testing.assert_array_equal(grid.offsets, offsets.astype(np.float16).astype(np.float32))


@SUPER
def test_formats_of_256_come_near_the_wishes(form: GridFormat) -> None:
    scales, offsets = wishes(form)
    grid = form.round(scales, offsets)
    np.testing.assert_allclose(grid.scales, scales, atol=0.01 / 31 / 1.5)
    if offsets is not None and grid.offsets is not None:
        np.testing.assert_allclose(grid.offsets, offsets, atol=0.07 / 63 + 15 * 0.01 / 63)


@ALL
def test_the_grid_s_own_scales_snap_to_the_same_grid(form: GridFormat) -> None:
    grid = rounded(form)
    again = form.snap(grid, grid.scales, grid.offsets)
    assert grid.fields.keys() == again.fields.keys()
    for name, items in grid.fields.items():
        np.testing.assert_array_equal(again.fields[name], items)


@SUPER
def test_snapping_keeps_the_steps(form: GridFormat) -> None:
    grid = rounded(form)
    scales, offsets = wishes(form, size=0.008, seed=1)
    moved = form.snap(grid, scales, offsets)
    assert moved.steps.keys() == grid.steps.keys()
    for name, step in grid.steps.items():
        np.testing.assert_array_equal(moved.steps[name], step)
    assert not np.array_equal(moved.scales, grid.scales)
    np.testing.assert_allclose(moved.scales, scales, atol=0.01 / 31 / 1.5)


@SUPER
def test_a_weighty_group_is_met_better(form: GridFormat) -> None:
    scales, offsets = wishes(form, n_rows=200)
    weights = np.ones_like(scales)
    weights[:, :: form.n_groups_per_block] = 1000
    errors = [np.abs(form.round(scales, offsets, w).scales - scales)[:, :: form.n_groups_per_block].mean() for w in (None, weights)]
    assert errors[1] < 0.5 * errors[0]


@ALL
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), sign=st.sampled_from([-1.0, 1.0]))
def test_nearest_is_nearest(form: GridFormat, seed: int, sign: float) -> None:
    scales, offsets = wishes(form, n_rows=2, seed=seed)
    grid = form.round(sign * scales, offsets)
    weights = np.random.default_rng(seed).normal(0, 0.1, (2, 512)).astype(np.float32)
    codes = grid.nearest(weights)
    every = np.stack([grid.values(np.full((2, 512), code, np.uint8)) for code in range(len(form.levels))])
    np.testing.assert_allclose(np.abs(grid.values(codes) - weights), np.abs(every - weights).min(axis=0), rtol=1e-5, atol=1e-7)


@ALL
def test_rows_of_zeros_come_back_as_zeros(form: GridFormat) -> None:
    scales, offsets = wishes(form)
    grid = form.round(scales * 0, None if offsets is None else offsets * 0)
    codes = grid.nearest(np.zeros((5, 512), np.float32))
    np.testing.assert_array_equal(form.levels[codes], form.levels[np.abs(form.levels).argmin()])
    assert not form.block.dequantize(grid.pack(codes)).any()
    assert all(not step.any() for step in grid.steps.values())


@PLAIN
def test_a_scale_below_float16_is_0(form: GridFormat) -> None:
    scales, offsets = wishes(form, size=1e-9)
    grid = form.round(scales, offsets)
    assert not grid.scales.any()
    weights = np.full((5, 512), 3e-9, np.float32)
    np.testing.assert_array_equal(form.levels[grid.nearest(weights)], form.levels[np.abs(form.levels).argmin()])


@ALL
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-6, 1e-4, 1.0, 500.0])
def test_scales_of_any_size_give_finite_values(form: GridFormat, size: float) -> None:
    scales, offsets = wishes(form, size=size)
    grid = form.round(scales, offsets)
    np.testing.assert_allclose(grid.scales, scales, rtol=0, atol=size / 50 + 2.0**-24)
    assert np.isfinite(grid.values(grid.nearest(np.full((5, 512), size, np.float32)))).all()


@ALL
def test_scales_too_large_are_refused(form: GridFormat) -> None:
    scales, offsets = wishes(form)
    scales[3, 5] = 1e8
    with pytest.raises(InvalidRequestError, match=f"row 3: .* too large for {form.block.name}.*65504"):
        form.round(scales, offsets)


@pytest.mark.parametrize("name", ["Q4_1", "Q5_1", "Q4_K", "Q5_K"])
def test_offsets_too_large_are_refused(name: str) -> None:
    scales, offsets = wishes(GRID_FORMATS[name])
    assert offsets is not None
    offsets[1, 2] = -1e8
    with pytest.raises(InvalidRequestError, match="row 1: "):
        GRID_FORMATS[name].round(scales, offsets)


@ALL
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_wishes_and_weights_that_are_not_finite_are_refused(form: GridFormat, bad: float) -> None:
    scales, offsets = wishes(form)
    spoilt = scales.copy()
    spoilt[2, 7] = bad
    with pytest.raises(InvalidRequestError, match="scales of row 2 are infinite"):
        form.round(spoilt, offsets)
    with pytest.raises(InvalidRequestError, match="weights of row 2 are infinite"):
        form.round(scales, offsets, spoilt)
    with pytest.raises(InvalidRequestError, match="weights are infinite"):
        form.round(scales, offsets).nearest(np.full((5, 512), bad, np.float32))


@ALL
def test_offsets_are_asked_for_where_the_format_has_them_and_only_there(form: GridFormat) -> None:
    scales, offsets = wishes(form)
    with pytest.raises(InvalidRequestError, match="offset"):
        form.round(scales, None if form.has_offset else scales)
    if offsets is not None:
        with pytest.raises(InvalidRequestError, match=r"offsets have shape \[4, "):
            form.round(scales, offsets[:4])


@ALL
def test_a_grid_of_another_shape_or_format_and_negative_weights_are_refused(form: GridFormat) -> None:
    scales, offsets = wishes(form)
    grid = form.round(scales, offsets)
    with pytest.raises(InvalidRequestError, match="cannot snap"):
        form.snap(grid, scales[:4], None if offsets is None else offsets[:4])
    other = GRID_FORMATS["Q8_0" if form.block.name == "Q4_0" else "Q4_0"]
    with pytest.raises(InvalidRequestError, match=f"cannot snap to GridFormat\\({other.block.name}"):
        form.snap(rounded(other), scales, offsets)
    with pytest.raises(InvalidRequestError, match="0 or more"):
        form.round(scales, offsets, -scales)


@SUPER
def test_groups_that_are_no_whole_blocks_are_refused(form: GridFormat) -> None:
    with pytest.raises(InvalidRequestError, match=f"multiples of {form.n_groups_per_block}"):
        form.round(np.ones((2, form.n_groups_per_block + 1)), np.ones((2, form.n_groups_per_block + 1)) if form.has_offset else None)


@ALL
def test_wrong_codes_and_bytes_are_refused(form: GridFormat) -> None:
    grid = rounded(form)
    codes = np.zeros((5, 512), np.uint8)
    for method in (grid.values, grid.pack):
        with pytest.raises(InvalidRequestError, match=r"codes are uint8 \[5, 480\]"):
            method(codes[:, :480])
        with pytest.raises(InvalidRequestError, match="codes are int64"):
            method(codes.astype(np.int64))
        if len(form.levels) < 256:
            with pytest.raises(InvalidRequestError, match=f"code {len(form.levels)} is beyond"):
                method(codes + np.uint8(len(form.levels)))
    with pytest.raises(InvalidRequestError, match="bytes"):
        form.unpack(grid.pack(codes)[:-1], 5, 512)
    with pytest.raises(ModelFileError, match="blocks"):
        form.unpack(grid.pack(codes), 5, 500)
    with pytest.raises(InvalidRequestError, match=r"weights have shape \[512, 5\]"):
        grid.nearest(np.zeros((512, 5), np.float32))


@ALL
def test_fields_do_not_hold_on_to_the_file(form: GridFormat) -> None:
    data = rounded(form).pack(np.zeros((5, 512), np.uint8)).copy()
    grid, codes = form.unpack(data, 5, 512)
    before = grid.values(codes)
    data[:] = 0
    np.testing.assert_array_equal(form.unpack(grid.pack(codes), 5, 512)[0].values(codes), before)
