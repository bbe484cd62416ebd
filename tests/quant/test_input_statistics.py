"""Sums over the inputs of a linear layer."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant import input_statistics
from edgelm.quant.input_statistics import InputAccumulator, InputStatistics


def inputs(n_tokens: int, n_in: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n_tokens, n_in)).astype(np.float32)


def accumulated(x: NDArray[np.float32], block: int, outer: bool = True) -> InputStatistics:
    accumulator = InputAccumulator("w", x.shape[1], outer)
    for start in range(0, len(x), block):
        accumulator.add(x[start : start + block])
    return accumulator.finish()


@pytest.mark.parametrize("strip", [7, 40, 2048])
def test_sums_are_those_of_all_inputs_at_once(monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    monkeypatch.setattr(input_statistics, "_STRIP", strip)
    x = inputs(300, 40)
    statistics = accumulated(x, 64)
    exact = x.astype(np.float64).T @ x.astype(np.float64)
    assert statistics.outer is not None
    assert statistics.n_tokens == 300
    np.testing.assert_allclose(statistics.outer, exact, atol=1e-3)
    np.testing.assert_array_equal(statistics.outer, statistics.outer.T)
    np.testing.assert_array_equal(statistics.outer.diagonal(), statistics.squares)
    np.testing.assert_array_equal(statistics.squares, np.diag(exact).astype(np.float32))


def test_inputs_that_do_not_lie_side_by_side_in_memory() -> None:
    x = inputs(500, 400)
    for view in (x[:, ::2], np.asfortranarray(x), x[::3]):
        np.testing.assert_allclose(accumulated(view, 200).outer, accumulated(view.copy(), 200).outer, rtol=1e-4, atol=1e-3)


def test_squares_alone_are_the_same() -> None:
    x = inputs(100, 16)
    full, squares_only = accumulated(x, 30), accumulated(x, 30, outer=False)
    assert squares_only.outer is None
    np.testing.assert_array_equal(squares_only.squares, full.squares)


def test_small_inputs_after_a_large_one_are_not_lost() -> None:
    accumulator = InputAccumulator("w", 1, outer=False)
    accumulator.add(np.full((1, 1), 4096.0, np.float32))
    for _ in range(64):  # each adds less than half a unit in the last place of the sum in float32
        accumulator.add(np.full((1, 1), 0.5, np.float32))
    assert accumulator.finish().squares[0] == 4096.0**2 + 16


def test_no_inputs_at_all() -> None:
    statistics = InputAccumulator("w", 3).finish()
    assert statistics.n_tokens == 0
    assert not statistics.squares.any()


@pytest.mark.parametrize("bad", [np.zeros((2, 5), np.float32), np.zeros(4, np.float32), np.zeros((2, 4), np.float64)])
def test_inputs_of_another_shape_or_type(bad: NDArray[np.float32]) -> None:
    with pytest.raises(InvalidRequestError, match=r"inputs of blk\.0 .* float32 \[n_tokens, 4\]"):
        InputAccumulator("blk.0", 4).add(bad)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_finite(value: float) -> None:
    x = inputs(4, 4)
    x[2, 1] = value
    with pytest.raises(InvalidRequestError, match=r"blk\.3.*not finite"):
        InputAccumulator("blk.3", 4).add(x)


def test_sums_that_overflow() -> None:
    accumulator = InputAccumulator("w", 2, outer=False)
    accumulator.add(np.full((1, 2), 3e19, np.float32))
    with pytest.raises(InvalidRequestError, match="overflowed"):
        accumulator.finish()


def test_nothing_is_added_after_the_end() -> None:
    accumulator = InputAccumulator("w", 4)
    accumulator.add(inputs(2, 4))
    accumulator.finish()
    with pytest.raises(InvalidRequestError, match="finished"):
        accumulator.add(inputs(2, 4))


def test_contradictory_statistics() -> None:
    squares, outer = np.ones(3, np.float32), np.eye(3, dtype=np.float32)
    InputStatistics(5, squares, outer)
    with pytest.raises(InvalidRequestError, match="negative"):
        InputStatistics(-1, squares)
    with pytest.raises(InvalidRequestError, match="negative"):
        InputStatistics(1, -squares)
    with pytest.raises(InvalidRequestError, match="no tokens"):
        InputStatistics(0, squares)
    with pytest.raises(InvalidRequestError, match="finite"):
        InputStatistics(1, squares * np.float32(np.nan))
    with pytest.raises(InvalidRequestError, match=r"float32 \[n_in\]"):
        InputStatistics(1, outer)
    with pytest.raises(InvalidRequestError, match=r"\[3, 3\]"):
        InputStatistics(1, squares, outer[:2])
    with pytest.raises(InvalidRequestError, match="symmetric"):
        InputStatistics(1, squares, np.triu(np.ones((3, 3), np.float32)))
    with pytest.raises(InvalidRequestError, match="diagonal"):
        InputStatistics(1, squares, 2 * outer)
    with pytest.raises(InvalidRequestError, match="finite"):
        InputStatistics(1, squares, np.where(outer == 0, np.float32(np.inf), outer))
