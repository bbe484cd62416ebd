from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelm.quant.knapsack import TOLERANCE, Items, hull, pareto, select


def items(pairs: list[tuple[float, float]]) -> Items:
    weights, costs = np.array(pairs, np.float64).T
    return Items(weights, costs)


def totals(classes: list[Items], chosen: tuple[int, ...] | list[int]) -> tuple[float, float]:
    pairs = [(c.weights[n], c.costs[n]) for c, n in zip(classes, chosen, strict=True)]
    return float(sum(w for w, _ in pairs)), float(sum(c for _, c in pairs))


def least_cost(classes: list[Items], capacity: float) -> float | None:
    """By trying everything."""
    weights, costs = np.zeros(1), np.zeros(1)
    for c in classes:
        weights, costs = np.add.outer(weights, c.weights).reshape(-1), np.add.outer(costs, c.costs).reshape(-1)
    return float(costs[weights <= capacity].min()) if (weights <= capacity).any() else None


# Small whole numbers, so that equal weights, equal costs and sums that meet the capacity exactly come often.
WHOLE = st.integers(0, 12).map(float)
CLASSES = st.lists(st.lists(st.tuples(WHOLE, WHOLE), min_size=1, max_size=5).map(items), min_size=1, max_size=5)


@settings(deadline=None, max_examples=150)
@given(CLASSES, st.integers(0, 60).map(float))
def test_selection_costs_no_more_than_any_other(classes: list[Items], capacity: float) -> None:
    best = least_cost(classes, capacity)
    chosen = select(classes, capacity)
    if best is None:
        assert chosen is None
        return
    assert chosen is not None
    weight, cost = totals(classes, chosen)
    assert weight <= capacity
    assert cost <= best * (1 + 2 * TOLERANCE)


@pytest.mark.parametrize("seed", range(20))
def test_selection_of_formats_is_the_best_under_any_capacity(seed: int) -> None:
    """Classes as tensors are: weights in proportion to a size, costs that fall with the weight, more or less."""
    rng = np.random.default_rng(seed)
    sizes, bits = rng.choice([3, 9, 24], 6), np.array([4.25, 4.5, 5, 5.5, 8.5])
    classes = [Items(size * bits, size * 2.0 ** -(2 * bits) * np.exp(rng.normal(0, 1) + rng.normal(0, 0.2, 5))) for size in sizes]
    for capacity in sizes.sum() * rng.uniform(4.2, 8.6, 4):
        best, chosen = least_cost(classes, capacity), select(classes, capacity)
        if best is None:
            assert chosen is None
        else:
            assert chosen is not None
            weight, cost = totals(classes, chosen)
            assert weight <= capacity
            assert cost <= best * (1 + 2 * TOLERANCE)


def test_gap_that_steps_along_the_hulls_leave_is_filled() -> None:
    # Greedy takes the first class's step (saving 10 per unit) and has no room for the second's, which is worth more.
    classes = [items([(0, 60), (6, 0)]), items([(0, 90), (10, 0)])]
    assert select(classes, 10) == [0, 1]


def test_selection_along_the_hulls_stays_where_nothing_is_better() -> None:
    # The first class's step does not fit; the second's does, and leaves no gap that anything else would fill as well.
    assert select([items([(0, 2), (3, 0)]), items([(0, 1), (2, 0)])], 2) == [0, 1]


def test_capacity_met_exactly_in_floating_point_is_enough() -> None:
    classes = [items([(0.1, 1), (0.3, 0)]) for _ in range(3)]  # 0.1 + 0.1 + 0.1 is above 0.3
    assert select(classes, 0.3) == [0, 0, 0]
    assert select(classes, 0.3 * (1 - 1e-9)) is None


def test_all_the_best_where_everything_fits() -> None:
    assert select([items([(1, 5), (2, 0)]), items([(1, 0), (3, 0)])], 100) == [1, 0]


def test_hundreds_of_classes_of_like_items_are_no_trouble() -> None:
    """Equal steps everywhere: with nothing to tell selections apart, their number would explode without bounds."""
    classes = [items([(4.5, 1), (5, 0.5), (6, 0.2), (8.5, 0.01)])] * 300
    chosen = select(classes, 300 * 5.3)
    assert chosen is not None
    weight, _ = totals(classes, chosen)
    assert 300 * 5.3 - 3.5 <= weight <= 300 * 5.3


def test_pareto_drops_what_another_surpasses() -> None:
    front = pareto(items([(5, 1), (4, 2), (4, 3), (6, 1), (3, 9), (7, 0)]))
    assert front.tolist() == [4, 1, 0, 5]


def test_hull_drops_what_a_mixture_surpasses() -> None:
    front = items([(0, 10), (1, 9), (2, 4), (3, 2), (4, 0), (9, -1)])
    assert hull(front).tolist() == [0, 2, 4, 5]
