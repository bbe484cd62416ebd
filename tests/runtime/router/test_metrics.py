"""Metrics of a confidence, against their definitions written out."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.metrics import aurc, auroc, bootstrap, reliability, risk_coverage

ROWS = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12)


@given(ROWS)
def test_auroc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    true, false = [s for s, y in rows if y], [s for s, y in rows if not y]
    found = auroc([s for s, _ in rows], [y for _, y in rows])
    if not true or not false:
        assert math.isnan(found)
    else:
        pairs = [(t > f) + (t == f) / 2 for t in true for f in false]
        assert found == pytest.approx(sum(pairs) / len(pairs))


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=5))
def test_aurc_is_the_mean_over_all_orders_of_equal_scores(rows: list[tuple[int, bool]]) -> None:
    areas = []
    for order in permutations(rows):
        if all(a[0] >= b[0] for a, b in pairwise(order)):
            areas.append(np.mean([np.mean([loss for _, loss in order[:k]]) for k in range(1, len(order) + 1)]))
    assert aurc([s for s, _ in rows], [y for _, y in rows]) == pytest.approx(np.mean(areas))


def test_risk_rises_with_coverage_where_the_scores_are_right() -> None:
    coverage, risk = risk_coverage([0.9, 0.1, 0.8, 0.2], [0, 1, 0, 1])
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk == pytest.approx([0, 0, 1 / 3, 0.5])


def test_reliability_by_hand() -> None:
    found = reliability([0.0, 0.1, 0.5, 0.9, 1.0], [False, True, True, True, True], 2)
    assert found.n_rows.tolist() == [2, 3]  # a half belongs to the upper bin, a whole to the last one
    assert found.predicted == pytest.approx([0.05, 0.8])
    assert found.observed == pytest.approx([0.5, 1.0])
    assert found.ece == pytest.approx((2 * 0.45 + 3 * 0.2) / 5)
    assert found.brier == pytest.approx((0 + 0.81 + 0.25 + 0.01 + 0) / 5)


def test_an_empty_bin_is_nan_and_counts_nothing() -> None:
    found = reliability([0.9, 0.9], [True, True], 10)
    assert np.isnan(found.observed).sum() == 9
    assert found.ece == pytest.approx(0.1)


def test_the_interval_of_a_mean_holds_it_and_is_as_wide_as_its_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    low, high = bootstrap(lambda rows: float(values[rows].mean()), 400, 1000, 1)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_rows_of_one_group_are_drawn_together() -> None:
    groups = [i // 50 for i in range(400)]
    values = np.random.default_rng(0).normal(size=8).repeat(50)  # eight values that are only repeated

    def width(of: list[int] | None) -> float:
        low, high = bootstrap(lambda rows: float(values[rows].mean()), 400, 500, 1, of)
        return high - low

    assert width(groups) > 4 * width(None)


def test_the_same_seed_gives_the_same_interval() -> None:
    assert bootstrap(lambda rows: float(rows.mean()), 20, 50, 3) == bootstrap(lambda rows: float(rows.mean()), 20, 50, 3)


def test_samples_that_define_nothing_are_left_out() -> None:
    labels = np.array([True] * 9 + [False])
    low, high = bootstrap(lambda rows: auroc(np.arange(10)[rows], labels[rows]), 10, 200, 0)
    assert (low, high) == (0.0, 0.0)
    assert all(map(math.isnan, bootstrap(lambda _: math.nan, 10, 20, 0)))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="one length"):
        auroc([1.0, 2.0], [True])
    with pytest.raises(InvalidRequestError, match="nan"):
        aurc([math.nan], [0.0])
    with pytest.raises(InvalidRequestError, match="from 0 to 1"):
        reliability([1.5], [True])
    with pytest.raises(InvalidRequestError, match="at least one"):
        bootstrap(lambda _: 0.0, 0)
    with pytest.raises(InvalidRequestError, match="one for each row"):
        bootstrap(lambda _: 0.0, 3, groups=["a"])
