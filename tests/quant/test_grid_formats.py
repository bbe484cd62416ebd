"""Every grid format against the declared blocks, with gguf and libgguf as oracles."""

from __future__ import annotations

import gguf
import libgguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from random_blocks import finite_blocks

from edgelm.errors import UnsupportedModelError
from edgelm.quant.blocks import BF16, F16, F32, FORMATS, BlockFormat
from edgelm.quant.grid import GridFormat
from edgelm.quant.grid_formats import GRID_FORMATS, grid_format

ALL = pytest.mark.parametrize("form", GRID_FORMATS.values(), ids=GRID_FORMATS)
SUPER = pytest.mark.parametrize("form", [f for f in GRID_FORMATS.values() if f.n_groups_per_block > 1], ids=lambda f: f.block.name)


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(GRID_FORMATS)), n_rows=st.integers(1, 6), n_blocks=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_any_blocks_come_back_to_the_byte_and_their_values_to_the_bit(name: str, n_rows: int, n_blocks: int, seed: int) -> None:
    block, form = FORMATS[name], GRID_FORMATS[name]
    data = finite_blocks(block, n_rows * n_blocks, seed)
    grid, codes = form.unpack(data, n_rows, n_blocks * block.n_elements)
    np.testing.assert_array_equal(grid.pack(codes), data)
    expected = gguf.quants.dequantize(data.reshape(n_rows, -1), GGMLQuantizationType[name])
    assert grid.values(codes).tobytes() == expected.tobytes() == block.dequantize(data).tobytes()


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(GRID_FORMATS)),
    n_rows=st.integers(1, 6),
    n_blocks=st.integers(1, 3),
    exponent=st.integers(-28, 8),
    seed=st.integers(0, 2**32),
)
def test_a_rounded_grid_holds_what_libgguf_decodes(name: str, n_rows: int, n_blocks: int, exponent: int, seed: int) -> None:
    form, rng = GRID_FORMATS[name], np.random.default_rng(seed)
    n_columns = n_blocks * form.block.n_elements
    shape = (n_rows, n_columns // form.group_size)
    scales, offsets = (rng.standard_normal(shape) * 2.0**exponent for _ in range(2))
    grid = form.round(scales, offsets if form.has_offset else None)
    codes = rng.integers(0, len(form.levels), (n_rows, n_columns), dtype=np.uint8)
    data = grid.pack(codes)
    decoded = libgguf.dequantize_rows_raw(form.block.type_id, data.reshape(n_rows, -1), n_rows, n_columns)
    assert grid.values(codes).tobytes() == bytes(decoded)
    again, codes_again = form.unpack(data, n_rows, n_columns)
    np.testing.assert_array_equal(codes_again, codes)
    np.testing.assert_array_equal(again.scales, grid.scales)


@ALL
def test_every_level_is_reached_and_they_ascend(form: GridFormat) -> None:
    n_columns = max(256, form.block.n_elements)
    ones = np.ones((1, n_columns // form.group_size))
    grid = form.round(ones, 0 * ones if form.has_offset else None)
    codes = (np.arange(n_columns)[None] % len(form.levels)).astype(np.uint8)
    np.testing.assert_allclose(form.block.dequantize(grid.pack(codes)), form.levels[codes[0]], rtol=1e-3, atol=4e-3)
    assert (np.diff(form.levels) > 0).all()


def test_every_quantized_format_has_a_grid() -> None:
    assert set(GRID_FORMATS) == {name for name, block in FORMATS.items() if block.n_elements > 1}
    assert all(grid_format(FORMATS[name]).block is FORMATS[name] for name in GRID_FORMATS)


@pytest.mark.parametrize("block", [F32, F16, BF16], ids=lambda b: b.name)
def test_float_formats_have_none(block: BlockFormat) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{block.name} has no grid"):
        grid_format(block)


@ALL
def test_the_grid_of_the_extremes_is_as_good_as_the_reference_quantizer(form: GridFormat) -> None:
    values = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    groups = values.reshape(64, -1, form.group_size)
    low = np.minimum(groups.min(axis=2), 0)
    if form.has_offset:
        grid = form.round((groups.max(axis=2) - low) / form.levels[-1], low)
    else:
        largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2, keepdims=True), axis=2)[..., 0]
        grid = form.round(largest / form.levels[0])
    error = np.linalg.norm(grid.values(grid.nearest(values)) - values)
    reference = np.linalg.norm(form.block.dequantize(form.block.quantize(values)).reshape(values.shape) - values)
    # The reference of IQ4_NL and IQ4_XS searches its scales, and that of Q4_1 and Q5_1 may start above 0.
    assert error < reference * (1.1 if form.block.name in ("IQ4_NL", "IQ4_XS", "Q4_1", "Q5_1") else 1.005)


@SUPER
def test_a_scale_keeps_the_sign_that_was_wished_for(form: GridFormat) -> None:
    wishes = -np.random.default_rng(1).uniform(1, 2, (4, form.n_groups_per_block))
    grid = form.round(wishes, wishes if form.has_offset else None)
    np.testing.assert_allclose(grid.scales, wishes, rtol=0.04)
    if form.has_offset:
        positive = form.round(wishes, -wishes)
        assert positive.offsets is not None
        np.testing.assert_allclose(positive.offsets, -wishes, atol=0.04 * 32)
        assert (positive.fields["dmin"] < 0).all()


@pytest.mark.parametrize("name", ["Q6_K", "IQ4_XS"])
def test_scales_of_both_signs_live_in_one_block(name: str) -> None:
    form = GRID_FORMATS[name]
    wishes = np.random.default_rng(2).choice([-1.0, 1.0], (8, form.n_groups_per_block)) * np.linspace(0.5, 1, form.n_groups_per_block)
    np.testing.assert_allclose(form.round(wishes).scales, wishes, atol=0.02)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K"])
def test_offsets_against_the_sign_of_the_others_become_0(name: str) -> None:
    form = GRID_FORMATS[name]
    offsets = np.array([[-1, -0.9, -0.8, -0.7, -1, -0.5, -1, 1.2]])
    grid = form.round(np.full((1, 8), 2**-10), offsets)
    assert grid.offsets is not None
    np.testing.assert_allclose(grid.offsets, np.minimum(offsets, 0), atol=0.02)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K"])
def test_the_middle_level_stays_where_it_was_wished(name: str) -> None:
    form = GRID_FORMATS[name]
    scales = np.random.default_rng(3).uniform(0.02, 1, (50, 16))
    offsets = np.full_like(scales, -0.5)
    grid = form.round(scales, offsets)
    assert grid.offsets is not None
    moved_by_scales = (grid.scales - scales) * form.levels.mean()
    moved = moved_by_scales + grid.offsets - offsets
    assert np.sqrt(np.mean(moved**2)) < 0.2 * np.sqrt(np.mean(moved_by_scales**2))
