"""The step of a block: as near to the wishes as the search promises, whatever their size, sign and weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgelm.quant.grid_steps import choose_step, find_step, whole_multiples

RANGES = pytest.mark.parametrize(("low", "high"), [(0, 63), (-32, 31), (-128, 127)])


def squared_error(wishes: NDArray[np.float64], weights: NDArray[np.float64], step: NDArray[np.float16], low: int, high: int) -> float:
    q = whole_multiples(wishes, step, low, high)
    return float((weights * (wishes - step.astype(np.float64)[:, None] * q) ** 2).sum())


def wishes_of(low: int, n: int = 400, spread: float = 1.0) -> NDArray[np.float64]:
    rng = np.random.default_rng(n)
    wishes = np.exp(spread * rng.standard_normal((n, 8)))
    return wishes if low == 0 else wishes * rng.choice([-1.0, 1.0], wishes.shape)


@RANGES
@pytest.mark.parametrize("uneven", [0.0, 2.0], ids=["even weights", "uneven weights"])
def test_the_error_is_far_below_that_of_the_largest_wish_at_the_end(low: int, high: int, uneven: float) -> None:
    wishes = wishes_of(low, spread=0.3)
    weights = np.exp(uneven * np.random.default_rng(0).standard_normal(wishes.shape))
    largest = np.take_along_axis(wishes, np.abs(wishes).argmax(axis=1, keepdims=True), axis=1)[:, 0]
    plain = squared_error(wishes, weights, (largest / (low or high)).astype(np.float16), low, high)
    assert squared_error(wishes, weights, choose_step(wishes, weights, low, high), low, high) < (0.3 if uneven else 0.85) * plain


@RANGES
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), exponent=st.integers(-20, 8))
def test_whole_multiples_of_a_step_are_met_exactly(low: int, high: int, seed: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    step = (rng.uniform(1, 2, 20) * rng.choice([-1, 1], 20) * 2.0**exponent).astype(np.float16)
    q = rng.integers(low, high + 1, (20, 8))
    q[:, 3] = low or high
    products = step.astype(np.float64)[:, None] * q
    chosen = choose_step(products, np.ones_like(products), low, high)
    np.testing.assert_array_equal(chosen.astype(np.float64)[:, None] * whole_multiples(products, chosen, low, high), products)
    np.testing.assert_array_equal(find_step(products, np.zeros_like(products), low, high), step)


def test_a_step_with_smaller_multiples_is_found_too() -> None:
    products = np.array([[3, 5, 2, 0, 7, 0, 0, 1], [0] * 8], np.float64) * 0.125
    step = find_step(products, np.zeros_like(products), 0, 63)
    q = products[0] / step[0]
    assert (q == np.rint(q)).all()
    assert q.max() <= 63
    assert step[1] == 0


def test_what_no_step_divides_has_none() -> None:
    products = np.array([[1, np.pi, 0.3]])
    assert find_step(products, np.zeros_like(products), 0, 63) == 0
    assert find_step(products, np.full_like(products, 0.03), 0, 63) > 0


@RANGES
def test_tiny_wishes_are_met_by_multiples_of_the_smallest_float16(low: int, high: int) -> None:
    wishes = np.full((1, 8), 1e-6)
    step = choose_step(wishes, np.ones_like(wishes), low, high)
    np.testing.assert_allclose(step.astype(np.float64) * whole_multiples(wishes, step, low, high)[0], 1e-6, atol=2.0**-25)


@RANGES
def test_zeros_have_step_0_and_too_large_ones_an_infinite_one(low: int, high: int) -> None:
    zeros = np.zeros((2, 8))
    step = choose_step(zeros, zeros, low, high)
    assert (step == 0).all()
    assert not whole_multiples(zeros, step, low, high).any()
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.isinf(choose_step(np.full((1, 8), 1e9), np.ones((1, 8)), low, high)).all()


@RANGES
def test_weights_of_0_are_all_the_same(low: int, high: int) -> None:
    wishes = wishes_of(low)
    np.testing.assert_array_equal(
        choose_step(wishes, np.zeros_like(wishes), low, high), choose_step(wishes, np.ones_like(wishes), low, high)
    )


def test_a_group_that_does_not_matter_does_not_move_the_step() -> None:
    wishes = np.array([[1.0, 0.9, 0.8, 1.07, 0.93, 0.77, 0.66, 0.5]])
    weights = np.array([[1.0] * 7 + [0.0]])
    others = wishes.copy()
    others[0, 7] = 0.123
    np.testing.assert_array_equal(choose_step(wishes, weights, 0, 63), choose_step(others, weights, 0, 63))


def test_the_heavier_sign_wins_where_multiples_cannot_be_negative() -> None:
    wishes = np.array([[-1.0] * 7 + [1.1]])
    assert choose_step(wishes, np.ones_like(wishes), 0, 63) < 0
    assert choose_step(wishes, np.array([[0.1] * 7 + [1.0]]), 0, 63) > 0
