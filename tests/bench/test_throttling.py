"""The verdict on synthetic runs: throttling, noise, steps, a hypervisor that takes time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgelm.bench.record import Conditions
from edgelm.bench.throttling import Round, Verdict, judge_speed

MINUTES = 10


def rounds(speed: Callable[[float], float], seconds: float = MINUTES * 60, noise: float = 0.02, seed: int = 0) -> list[Round]:
    """Rounds of 40 tokens with a pause of 10 ms, at `speed` tokens per second with relative noise."""
    rng = np.random.default_rng(seed)
    found, time_s = [], 5.0
    while not found or found[-1].end_s < 5 + seconds:
        duration = 40 / (speed(time_s - 5) * rng.lognormal(0, noise))
        found.append(Round(time_s, time_s + duration, 40))
        time_s += duration + 0.01
    return found


def conditions(
    mhz: Callable[[float], float] | None = None,
    celsius: Callable[[float], float] | None = None,
    steal: Callable[[float], float] | None = None,
    seconds: float = MINUTES * 60,
) -> list[Conditions]:
    """Once a second; each figure a function of the time since the run's start."""
    times = np.arange(0.0, seconds + 10)
    return [
        Conditions(t, *(None if figure is None else float(figure(max(t - 5, 0.0))) for figure in (mhz, celsius, steal)))
        for t in times.tolist()
    ]


def judge(speed: Callable[[float], float], known: list[Conditions] | None = None, n_threads: int = 2, **options: float) -> Verdict:
    return judge_speed(rounds(speed, **options), conditions() if known is None else known, n_threads)


def ramp(low: float) -> Callable[[float], float]:
    """10 tokens/s for the first minute, then falling to a share of it within two minutes."""
    return lambda t: 10 * float(np.interp(t, [60, 180], [1, low]))


def test_a_ramp_is_throttling() -> None:
    verdict = judge(ramp(0.8))
    assert verdict.throttled is True
    assert verdict.first_minute == pytest.approx(10, rel=0.02)
    assert verdict.steady == pytest.approx(8, rel=0.02)
    assert verdict.ratio_interval[0] < 0.8 < verdict.ratio_interval[1] < 0.85
    assert "20% below" in verdict.reason
    assert "neither clock nor temperature" in verdict.reason


def test_a_step_in_the_middle_is_seen() -> None:
    assert judge(lambda t: 10 if t < 300 else 9).throttled is True


def test_a_dip_that_is_over_is_not_the_steady_state() -> None:
    assert judge(lambda t: 5 if 200 < t < 300 else 10).throttled is False


@pytest.mark.parametrize("seed", range(10))
def test_noise_alone_holds(seed: int) -> None:
    verdict = judge(lambda _: 10, seed=seed)
    assert verdict.throttled is False
    assert verdict.ratio_interval[0] > 0.97
    assert verdict.reason.startswith("the steady speed is")


def test_a_faster_steady_state_holds() -> None:
    assert judge(lambda t: 9 if t < 60 else 10).throttled is False


def test_a_drop_of_two_percent_is_no_throttling() -> None:
    assert judge(ramp(0.98), noise=0.005).throttled is False


def test_too_much_noise_cannot_be_said() -> None:
    """Of fast and slow stretches of 20 seconds, as on a machine that others use: three in a minute tell too little."""
    unsteady = np.random.default_rng(1).uniform(3, 10, 100)
    verdict = judge(lambda t: unsteady[int(t / 20)], noise=0.1)
    assert verdict.throttled is None or verdict.ratio_interval[1] < 1
    slightly = judge(ramp(0.96), noise=0.4, seed=1)
    assert slightly.throttled is None
    assert "varies too much" in slightly.reason
    assert slightly.ratio_interval[0] < 0.97 < slightly.ratio_interval[1]


def test_what_a_hypervisor_takes_is_no_throttling() -> None:
    """20% of two threads' time, from the second minute on."""
    verdict = judge(ramp(0.8), conditions(steal=lambda t: 0.4 * max(t - 120, 0)))
    assert verdict.throttled is None
    assert "20% below" in verdict.reason
    assert "hypervisor took 20% more" in verdict.reason


def test_a_hypervisor_that_takes_little_or_took_as_much_before_explains_nothing() -> None:
    assert judge(ramp(0.8), conditions(steal=lambda t: 0.02 * max(t - 120, 0))).throttled is True
    assert judge(ramp(0.8), conditions(steal=lambda t: 0.4 * t)).throttled is True


def test_clock_and_temperature_are_told() -> None:
    hot = judge(ramp(0.8), conditions(mhz=lambda t: 3000 if t < 100 else 2400, celsius=lambda t: 50 if t < 100 else 85))
    assert hot.throttled is True
    assert hot.reason.endswith("the clock fell from 3000 to 2400 MHz and the temperature rose from 50 to 85 °C")
    even = judge(ramp(0.8), conditions(mhz=lambda _: 3000, celsius=lambda _: 50))
    assert even.reason.endswith("the clock stayed at 3000 MHz, so memory or other programs may be why and it was 50 °C")


@pytest.mark.parametrize("seconds", [1.0, 30.0, 110.0])
def test_less_than_two_minutes_cannot_tell(seconds: float) -> None:
    verdict = judge(lambda t: 10 if t < seconds / 2 else 5, seconds=seconds, noise=0.001)
    assert (verdict.throttled, verdict.first_minute, verdict.steady, verdict.ratio_interval) == (None, None, None, None)
    assert "less than two minutes cannot tell" in verdict.reason


def test_two_minutes_are_enough() -> None:
    assert judge(lambda t: 10 if t < 60 else 8, seconds=121).throttled is True
    assert judge(lambda _: 10, seconds=121).throttled is False


def test_pauses_between_rounds_are_not_slowness() -> None:
    """The engine fills its context before each round, and takes longer for it at the end."""
    found, time_s = [], 0.0
    while time_s < 600:
        found.append(Round(time_s, time_s + 4, 40))
        time_s += 4.5 if time_s < 100 else 7
    verdict = judge_speed(found, (), 2)
    assert verdict.throttled is False
    assert (verdict.first_minute, verdict.steady) == (pytest.approx(10), pytest.approx(10))


def test_nothing_or_rounds_too_long() -> None:
    assert judge_speed((), (), 1).reason == "nothing was decoded"
    long = [Round(i * 70.0, i * 70 + 70, 40) for i in range(4)]
    assert "a round takes a minute" in judge_speed(long, (), 1).reason
    few = [Round(i * 25.0, i * 25 + 25, 40) for i in range(12)]
    assert (judge_speed(few, (), 1).throttled, judge_speed(few, (), 1).ratio_interval) == (None, None)


def test_the_same_run_gives_the_same_verdict() -> None:
    assert judge(ramp(0.9)) == judge(ramp(0.9))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Independent noise: 95% of 60 runs are 57; the bootstrap of a dozen blocks is a little too sure."""
    covered = 0
    for seed in range(60):
        low, high = judge(lambda t: 10 if t < 60 else 9, seconds=240, noise=0.05, seed=seed).ratio_interval
        covered += low <= 0.9 <= high
    assert covered >= 50
