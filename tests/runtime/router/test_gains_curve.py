"""PGR, APGR and CPT against brute force."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.gains_curve import GainsCurve

ROWS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([-1.0, 0.0, 0.5, 1.0])), min_size=1, max_size=6)


def brute_force(scores: list[int], gains: list[float]) -> list[float]:
    """PGR after 0, 1, ... calls: the mean over every order that the scores allow."""
    orders = [order for order in permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in pairwise(order))]
    paths = [[sum(gains[n] for n in order[:k]) / sum(gains) for k in range(len(gains) + 1)] for order in orders]
    return [float(np.mean(step)) for step in zip(*paths, strict=True)]


@given(ROWS)
def test_area_and_reach_are_those_of_all_orders(rows: list[tuple[int, float]]) -> None:
    scores, gains = [s for s, _ in rows], [g for _, g in rows]
    curve = GainsCurve.of(scores, gains)
    if sum(gains) <= 0:
        assert math.isnan(curve.area())
        assert math.isnan(curve.reach(0.5))
        return
    pgr = brute_force(scores, gains)
    shares = np.linspace(0, 1, len(pgr))
    assert curve.area() == pytest.approx(np.trapezoid(pgr, shares))
    fine = np.linspace(0, 1, 60_001)
    for level in (0.5, 0.8):
        first = fine[np.argmax(np.interp(fine, shares, pgr) >= level - 1e-9)]
        assert curve.reach(level) == pytest.approx(first, abs=1e-4)
    assert curve.at(0.5) == pytest.approx(np.interp(0.5, shares, pgr))


@given(ROWS, st.randoms(use_true_random=False))
def test_rows_drawn_again_are_the_same_as_rows_written_again(rows: list[tuple[int, float]], random: object) -> None:
    drawn = [random.randrange(len(rows)) for _ in rows]  # type: ignore[attr-defined]
    scores, gains = np.array(rows).T
    again = GainsCurve.of(scores[drawn], gains[drawn])
    curve = GainsCurve.of(scores, gains)
    assert curve.area(np.array(drawn)) == pytest.approx(again.area(), nan_ok=True)
    assert curve.reach(0.8, np.array(drawn)) == pytest.approx(again.reach(0.8), nan_ok=True)


def test_chance_recovers_what_it_sends() -> None:
    curve = GainsCurve.of(np.zeros(9), np.arange(9.0))
    assert curve.area() == pytest.approx(0.5)
    assert curve.reach(0.8) == pytest.approx(0.8)


@given(ROWS)
def test_no_order_is_better_than_an_oracles(rows: list[tuple[int, float]]) -> None:
    scores, gains = np.array(rows).T
    if gains.sum() > 0:
        assert GainsCurve.of(gains, gains).area() >= GainsCurve.of(scores, gains).area() - 1e-12


@pytest.mark.parametrize(("scores", "gains"), [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0]), ([1.0], [math.nan])])
def test_what_is_no_curve_is_refused(scores: list[float], gains: list[float]) -> None:
    with pytest.raises(InvalidRequestError):
        GainsCurve.of(scores, gains)
