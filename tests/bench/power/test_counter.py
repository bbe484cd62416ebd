"""Counters: wraps undone, everything else that goes backwards or jumps refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.bench.power.counter import MAX_W, Counter
from edgelm.errors import MeterError

PERIOD_S = 0.05


@given(
    wrap_j=st.floats(1000, 300_000),
    start=st.floats(0, 1),
    steps=st.lists(st.tuples(st.floats(0.01, 0.15), st.floats(0, MAX_W * 0.99)), min_size=1, max_size=60),
)
def test_gains_survive_any_wraps(wrap_j: float, start: float, steps: list[tuple[float, float]]) -> None:
    counter, time, true = Counter(wrap_j, PERIOD_S), 0.0, start * wrap_j * 0.999
    first = true
    assert counter.advance(true % wrap_j, time) == 0.0
    for seconds, watts in steps:
        time += seconds
        true += seconds * watts
        assert counter.advance(true % wrap_j, time) == pytest.approx(true - first, abs=1e-6 * wrap_j)


@given(values=st.lists(st.floats(0, 200_000), min_size=2, max_size=20), wrap_j=st.sampled_from([None, 200_000.0]))
def test_whatever_a_counter_shows_its_total_never_falls_nor_exceeds_what_can_be(values: list[float], wrap_j: float | None) -> None:
    counter, total = Counter(wrap_j, PERIOD_S), 0.0
    for n, value in enumerate(values):
        try:
            after = counter.advance(value, n * 0.1)
        except MeterError:
            return
        assert total <= after <= total + MAX_W * (0.1 + PERIOD_S) * 1.001
        total = after


def test_a_reset_is_no_wrap() -> None:
    counter = Counter(65_536.0, PERIOD_S)
    counter.advance(30_000, 0.0)
    with pytest.raises(MeterError, match=r"went back from 30000\.000 to 3\.000 J: it was reset"):
        counter.advance(3, 0.1)


def test_backwards_without_a_range_is_a_reset() -> None:
    counter = Counter(None, PERIOD_S)
    counter.advance(10, 0.0)
    with pytest.raises(MeterError, match="reset"):
        counter.advance(9.999, 0.1)


def test_several_wraps_between_two_readings_are_refused() -> None:
    counter = Counter(65_536.0, PERIOD_S)
    counter.advance(100, 0.0)
    with pytest.raises(MeterError, match=r"not read for 20\.0 s, .* more than once"):
        counter.advance(200, 20.0)


def test_a_long_pause_is_harmless_for_a_counter_that_cannot_wrap_in_it() -> None:
    counter = Counter(None, PERIOD_S)
    counter.advance(100, 0.0)
    assert counter.advance(700, 60.0) == 600


def test_a_jump_that_no_machine_makes_is_refused() -> None:
    counter = Counter(None, PERIOD_S)
    counter.advance(0, 0.0)
    with pytest.raises(MeterError, match=r"jumped by 5000 J in 0\.100 s"):
        counter.advance(5000, 0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_what_is_no_energy_is_refused(value: float) -> None:
    with pytest.raises(MeterError, match="its counter reads"):
        Counter(None, PERIOD_S).advance(value, 0.0)
