"""When requests arrive that do not wait for each other: a Poisson process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def poisson_times(rate: float, seed: int = 0) -> Iterator[float]:
    """Seconds from the start to each arrival, without end: independent exponential gaps with the mean 1 / rate.

    Many people who do not know of each other arrive like this. The same seed gives the same times.
    """
    rng = np.random.default_rng(seed)
    time_s = 0.0
    while True:
        time_s += float(rng.exponential(1 / rate))
        yield time_s
