"""What a person who looks on is shown."""

from __future__ import annotations

import pytest
from power_machine import trace

from edgelm.bench.power.live import look


def test_a_counter_is_watts_of_the_last_second_and_since_the_start() -> None:
    values = [0.4 * n for n in range(51)] + [20 + 1.0 * n for n in range(1, 21)]  # 4 W for 5 s, then 10 W for 2 s
    seen = look(trace(values), 7.0)
    assert (seen.watts, seen.mean_w) == (pytest.approx(10.0), pytest.approx(40 / 7))


def test_a_meter_slower_than_a_second_is_watts_of_its_last_period() -> None:
    seen = look(trace([5.0, 6.0, 8.0], every_s=2.0, quantity="power", period_s=2.0), 4.0)
    assert (seen.watts, seen.mean_w) == (pytest.approx(7.0), pytest.approx(6.25))


@pytest.mark.parametrize("values", [[], [3.0]])
def test_too_little_to_tell(values: list[float]) -> None:
    seen = look(trace(values), 1.0)
    assert (seen.watts, seen.mean_w) == (None, None)


def test_one_value_of_a_power_meter_is_enough() -> None:
    assert look(trace([3.0], quantity="power"), 0.1).watts == 3.0


def test_what_is_old_is_not_now() -> None:
    values = [2.0 * n for n in range(50)]
    assert look(trace(values), 20.0).watts is None
    assert look(trace(values), 20.0).mean_w == pytest.approx(20.0)
    assert look(trace(values, problem="gone"), 5.0).watts is None
