import math

import numpy as np
import pytest

from edgelm.backends.config import Rope, Yarn
from edgelm.backends.rope import rope_tables


def angles(rope: Rope, n_positions: int, factors: np.ndarray | None = None) -> np.ndarray:
    cos, sin = rope_tables(rope, n_positions, factors)
    return np.arctan2(sin, cos)


def test_plain_rotation() -> None:
    cos, sin = rope_tables(Rope(n_dims=4, freq_base=100.0, original_context=16), 3)
    expected = np.outer([0, 1, 2], [1.0, 0.1])
    assert cos.dtype == sin.dtype == np.float32
    np.testing.assert_allclose(cos, np.cos(expected), rtol=1e-6)
    np.testing.assert_allclose(sin, np.sin(expected), rtol=1e-6)


def test_linear_scaling_slows_positions() -> None:
    plain, scaled = (angles(Rope(8, 10000.0, 16, position_scale=scale), 9) for scale in (1.0, 0.5))
    np.testing.assert_allclose(scaled[8], plain[4], atol=1e-6)


def test_factors_divide_frequencies() -> None:
    rope = Rope(4, 100.0, 16)
    factors = np.array([2.0, 4.0], np.float32)
    np.testing.assert_allclose(angles(rope, 2, factors)[1], [0.5, 0.025], rtol=1e-6)


def test_magnitude_scales_both_tables() -> None:
    cos, sin = rope_tables(Rope(8, 10000.0, 16, magnitude=1.25), 5)
    np.testing.assert_allclose(np.hypot(cos, sin), 1.25, rtol=1e-6)


def test_yarn_keeps_fast_pairs_and_slows_slow_ones() -> None:
    plain = Rope(64, 10000.0, 2048)
    yarn = Rope(64, 10000.0, 2048, yarn=Yarn(4.0, 32.0, 1.0))
    ratio = angles(yarn, 2)[1] / angles(plain, 2)[1]
    turns = 2048 * 10000.0 ** (-np.arange(0, 64, 2) / 64) / (2 * math.pi)
    assert ratio[turns > 40] == pytest.approx(1.0, rel=1e-5)
    assert ratio[turns < 0.5] == pytest.approx(0.25, rel=1e-5)
    assert (np.diff(ratio) <= 1e-6).all()
