"""The level nearest to a number, as kernels find it."""

from __future__ import annotations

import numpy as np
import pytest

from edgelm.quant.grid import GridFormat
from edgelm.quant.grid_formats import GRID_FORMATS
from edgelm.quant.levels import levels_of, nearest

ALL = pytest.mark.parametrize("form", GRID_FORMATS.values(), ids=GRID_FORMATS)


@ALL
def test_no_level_is_nearer(form: GridFormat) -> None:
    levels = levels_of(form)
    reach = 1.3 * float(np.abs(form.levels).max())
    for x in np.random.default_rng(0).uniform(-reach, reach, 2000).astype(np.float32):
        code = nearest(x, levels.values, levels.table)
        away = np.abs(form.levels.astype(np.float64) - float(x))
        assert away[code] <= away.min() + 1e-5 * reach


@ALL
def test_numbers_beyond_all_levels_and_infinite_ones_take_the_outermost(form: GridFormat) -> None:
    levels, last = levels_of(form), len(form.levels) - 1
    for far in (300.0, 1e12, 3e38, np.inf):
        assert nearest(np.float32(far), levels.values, levels.table) == last
        assert nearest(np.float32(-far), levels.values, levels.table) == 0


@ALL
def test_the_levels_themselves_and_zero(form: GridFormat) -> None:
    levels = levels_of(form)
    assert [nearest(x, levels.values, levels.table) for x in form.levels] == list(range(len(form.levels)))
    assert abs(form.levels[levels.zero]) == np.abs(form.levels).min()
    assert levels.values.flags.writeable  # the kernels would be compiled once more for read-only ones


@ALL
def test_what_is_not_a_number_gets_a_code(form: GridFormat) -> None:
    levels = levels_of(form)
    assert nearest(np.float32(np.nan), levels.values, levels.table) == 0
