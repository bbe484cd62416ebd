"""Figures from timestamps: tokens per second, time to first token, time between tokens, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.bench.record import Measurement, Trial

_RESAMPLES = 2000
_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval at 95%.

    Attributes:
        value: the statistic of the sample itself.
        low, high: None of fewer than 3 samples, from which no interval can be told.
    """

    value: float
    low: float | None
    high: float | None

    @property
    def half_width(self) -> float | None:
        """Half the interval's width over its value."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2 / self.value


def tokens_per_s(measurement: Measurement, trial: Trial) -> float:
    """Tokens of a trial over its seconds: prompt tokens (prefill), generated ones (decode), or all (both)."""
    n = {"prefill": measurement.n_prompt, "decode": len(trial.stamps_s), "both": measurement.n_prompt + len(trial.stamps_s)}
    return n[measurement.phase] / (trial.stamps_s[-1] - trial.start_s)


def speeds(measurement: Measurement) -> NDArray[np.float64]:
    """Tokens per second of every trial, [n_trials]."""
    return np.array([tokens_per_s(measurement, trial) for trial in measurement.trials])


def ttft_s(measurement: Measurement) -> NDArray[np.float64]:
    """Seconds from a request to its first token with the model open and warm, [n_trials] (prefill, both)."""
    return np.array([trial.stamps_s[0] - trial.start_s for trial in measurement.trials if measurement.phase != "decode"])


def itl_s(measurement: Measurement) -> NDArray[np.float64]:
    """Seconds between neighbouring generated tokens of all trials, [n]."""
    if measurement.phase == "prefill":
        return np.empty(0)
    return np.concatenate([np.empty(0), *(np.diff(trial.stamps_s) for trial in measurement.trials)])


def tpot_s(measurement: Measurement) -> float | None:
    """Seconds per output token after the first, the median over trials of (last - first) / (n - 1); None without two tokens."""
    if measurement.phase == "prefill" or not measurement.trials or len(measurement.trials[0].stamps_s) < 2:
        return None
    return float(np.median([(t.stamps_s[-1] - t.stamps_s[0]) / (len(t.stamps_s) - 1) for t in measurement.trials if len(t.stamps_s) > 1]))


def median_interval(samples: Sequence[float] | NDArray[np.float64]) -> Interval:
    """The median and its percentile-bootstrap interval (Efron 1979), with a fixed seed: the same sample gives the same interval."""
    values = np.asarray(samples, np.float64)
    return _interval(float(np.median(values)), len(values), lambda picks: np.median(values[picks], axis=1))


def paired_ratio(ours: Sequence[float] | NDArray[np.float64], theirs: Sequence[float] | NDArray[np.float64]) -> Interval:
    """The median of ours / theirs, turn by turn, so that slow drifts of the machine cancel."""
    n = min(len(ours), len(theirs))  # an engine that failed half way has fewer turns; those both had count
    return median_interval(np.asarray(ours[:n], np.float64) / np.asarray(theirs[:n], np.float64))


def unpaired_ratio(new: Sequence[float] | NDArray[np.float64], old: Sequence[float] | NDArray[np.float64]) -> Interval:
    """median(new) / median(old) of two independent samples; each is resampled by itself."""
    a, b = np.asarray(new, np.float64), np.asarray(old, np.float64)
    value = float(np.median(a) / np.median(b))
    if min(len(a), len(b)) < 3:
        return Interval(value, None, None)
    rng = np.random.default_rng(0)
    ratios = np.median(rng.choice(a, (_RESAMPLES, len(a))), axis=1) / np.median(rng.choice(b, (_RESAMPLES, len(b))), axis=1)
    low, high = np.quantile(ratios, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(value, float(low), float(high))


def _interval(value: float, n: int, statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]]) -> Interval:
    if n < 3:
        return Interval(value, None, None)
    picks = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
    low, high = np.quantile(statistic(picks), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(value, float(low), float(high))
