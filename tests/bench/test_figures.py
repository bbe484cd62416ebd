from dataclasses import replace

import numpy as np
import pytest

from edgelm.bench.figures import itl_s, median_interval, paired_ratio, speeds, tokens_per_s, tpot_s, ttft_s, unpaired_ratio
from edgelm.bench.record import Measurement, Trial

PREFILL = Measurement("cpu", 1, "prefill", 100, 0, 0, (Trial(10.0, (10.5,)),))
DECODE = Measurement("cpu", 1, "decode", 0, 4, 0, (Trial(20.0, (20.1, 20.2, 20.3, 20.5)),))
BOTH = Measurement("cpu", 1, "both", 100, 4, 0, (Trial(30.0, (30.5, 30.6, 30.7, 31.0)),))


def test_tokens_per_second_counts_what_the_phase_computes() -> None:
    assert tokens_per_s(PREFILL, PREFILL.trials[0]) == pytest.approx(200)
    assert tokens_per_s(DECODE, DECODE.trials[0]) == pytest.approx(8)
    assert tokens_per_s(BOTH, BOTH.trials[0]) == pytest.approx(104)


def test_latencies() -> None:
    assert ttft_s(PREFILL) == pytest.approx([0.5])
    assert ttft_s(BOTH) == pytest.approx([0.5])
    assert ttft_s(DECODE).size == 0
    assert itl_s(DECODE) == pytest.approx([0.1, 0.1, 0.2])
    assert itl_s(PREFILL).size == 0
    assert tpot_s(BOTH) == pytest.approx(0.5 / 3)
    assert tpot_s(PREFILL) is None


def test_a_measurement_without_trials_has_no_figures() -> None:
    empty = replace(DECODE, trials=())
    assert speeds(empty).size == itl_s(empty).size == ttft_s(empty).size == 0
    assert tpot_s(empty) is None


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    intervals = [median_interval(rng.normal(100, 5, 25)) for _ in range(300)]
    covered = sum(1 for interval in intervals if interval.low <= 100 <= interval.high)
    assert 0.90 <= covered / 300 <= 0.99


def test_intervals_are_the_same_for_the_same_sample_and_none_for_too_few() -> None:
    assert median_interval([1, 2, 3, 4, 9]) == median_interval([1, 2, 3, 4, 9])
    few = median_interval([1.0, 2.0])
    assert (few.value, few.low, few.high, few.half_width) == (1.5, None, None, None)
    assert median_interval([5.0] * 6).half_width == 0


def test_paired_ratios_cancel_a_drift_that_unpaired_ones_see() -> None:
    drift = np.linspace(1, 2, 10)
    paired, unpaired = paired_ratio(3 * drift, drift), unpaired_ratio(3 * drift, drift)
    assert (paired.value, paired.low, paired.high) == pytest.approx((3, 3, 3))
    assert unpaired.value == pytest.approx(3)
    assert unpaired.high - unpaired.low > 0.5


def test_a_ratio_of_an_engine_that_ended_half_way_takes_the_turns_of_both() -> None:
    assert paired_ratio([4.0, 6.0, 8.0], [2.0, 2.0]).value == 2.5
