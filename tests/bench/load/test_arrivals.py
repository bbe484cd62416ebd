"""Poisson arrivals, by their statistics."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from edgelm.bench.load.arrivals import poisson_times


@pytest.mark.parametrize("rate", [0.5, 4.0, 100.0])
def test_gaps_are_exponential(rate: float) -> None:
    n = 20_000
    gaps = np.diff([0.0, *islice(poisson_times(rate, seed=3), n)])
    assert gaps.mean() == pytest.approx(1 / rate, rel=4 / np.sqrt(n))
    assert gaps.std() == pytest.approx(1 / rate, rel=0.05)
    probabilities = np.arange(1, n + 1) / n  # Kolmogorov-Smirnov: the distance exceeds 1.95 / sqrt(n) once in a thousand samples
    distance = np.abs(1 - np.exp(-rate * np.sort(gaps)) - probabilities).max()
    assert distance < 1.95 / np.sqrt(n)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 / np.sqrt(n)  # independent


def test_counts_in_equal_spans_are_poisson() -> None:
    times = np.array(list(islice(poisson_times(2.0, seed=5), 20_000)))
    counts = np.bincount((times / 5).astype(int))[:-1]
    assert counts.mean() == pytest.approx(10, rel=0.05)
    assert counts.var() / counts.mean() == pytest.approx(1, rel=0.15)


def test_the_seed_decides() -> None:
    def first(seed: int) -> list[float]:
        return list(islice(poisson_times(1.0, seed), 5))

    assert first(1) == first(1)
    assert first(1) != first(2)
