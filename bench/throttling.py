"""Does a speed hold? The last third of a long run beside its first minute, and what explains a difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.bench.record import Conditions

_MINUTE_S = 60.0
_BLOCK_S = 5.0
_DROP = 0.03
_RESAMPLES = 2000
_EXPLAINS = 0.5
_WARMER = 3.0


@dataclass(frozen=True)
class Round:
    """Some tokens decoded without pause, from the same depth in every round."""

    start_s: float
    end_s: float
    n_tokens: int


@dataclass(frozen=True)
class Verdict:
    """Whether a speed holds; the fields are those of edgelm.bench.record.Sustain."""

    throttled: bool | None
    first_minute: float | None
    steady: float | None
    ratio_interval: tuple[float, float] | None
    reason: str


def judge_speed(rounds: Sequence[Round], conditions: Sequence[Conditions], n_threads: int) -> Verdict:
    """Compare the steady state (the last third, at least a minute) with the first minute.

    Speeds are tokens over seconds in rounds. The 95% interval of their ratio is a percentile bootstrap (Efron 1979) of blocks of at
    least 5 seconds, because neighbouring rounds are alike. Throttled: the interval lies below 1 and the drop is at least 3%.
    Holds: the interval lies above a drop of 3%. A drop that a hypervisor explains is neither.
    """
    if not rounds:
        return Verdict(None, None, None, None, "nothing was decoded")
    start, end = rounds[0].start_s, rounds[-1].end_s
    first = [r for r in rounds if r.end_s <= start + _MINUTE_S]
    if end - start < 2 * _MINUTE_S:
        overall = f"{_speed(rounds):.3g} tokens/s over {end - start:.0f} s"
        return Verdict(None, None, None, None, f"{overall}; less than two minutes cannot tell whether the speed holds")
    border = end - max((end - start) / 3, _MINUTE_S)
    last = [r for r in rounds if r.start_s >= border]
    if not first or not last:
        return Verdict(None, None, None, None, "the engine is so slow that a round takes a minute; decode fewer tokens in a round")
    speeds = _speed(first), _speed(last)
    interval = _ratio_interval(first, last)
    if interval is None:
        return Verdict(None, *speeds, None, "too few rounds to tell the noise; let it run longer")
    change = _Change(conditions, (start, start + _MINUTE_S), (border, end), n_threads)
    return _verdict(speeds, interval, change)


def _verdict(speeds: tuple[float, float], interval: tuple[float, float], change: _Change) -> Verdict:
    ratio = speeds[1] / speeds[0]
    drop = 1 - ratio
    if interval[1] < 1 and drop >= _DROP:
        text = f"the steady speed is {drop:.0%} below the first minute's"
        if change.stolen >= _EXPLAINS * drop:
            more = f"a hypervisor took {change.stolen:.0%} more of its time than in the first minute, which is no throttling"
            return Verdict(None, *speeds, interval, f"{text}, but {more}")
        return Verdict(True, *speeds, interval, f"{text}; {change.explanation()}")
    if interval[0] > 1 - _DROP:
        return Verdict(False, *speeds, interval, f"the steady speed is {ratio:.1%} of the first minute's")
    return Verdict(
        None, *speeds, interval, f"the steady speed is {ratio:.1%} of the first minute's, but it varies too much; let it run longer"
    )


class _Change:
    """What of the machine differs between two spans of time.

    Attributes:
        stolen: by how much more of the threads' time a hypervisor took in the second span; 0 where the system does not tell.
        mhz, celsius: means of both spans; None where the system does not tell.
    """

    def __init__(self, conditions: Sequence[Conditions], first: tuple[float, float], last: tuple[float, float], n_threads: int) -> None:
        parts = [[c for c in conditions if low <= c.time_s <= high] for low, high in (first, last)]
        before, after = (_steal_rate(part) for part in parts)
        self.stolen = 0.0 if before is None or after is None else (after - before) / n_threads
        self.mhz = _means(parts, lambda c: c.mhz)
        self.celsius = _means(parts, lambda c: c.celsius)

    def explanation(self) -> str:
        """Clock and temperature, as far as the system tells them."""
        if self.mhz is None and self.celsius is None:
            return "the system shows neither clock nor temperature, so why is not known"
        return " and ".join(text for text in (self._of_clock(), self._of_temperature()) if text)

    def _of_clock(self) -> str:
        if self.mhz is None:
            return ""
        before, after = self.mhz
        if after > before * (1 - _DROP / 2):
            return f"the clock stayed at {after:.0f} MHz, so memory or other programs may be why"
        return f"the clock fell from {before:.0f} to {after:.0f} MHz"

    def _of_temperature(self) -> str:
        if self.celsius is None:
            return ""
        before, after = self.celsius
        return f"the temperature rose from {before:.0f} to {after:.0f} °C" if after > before + _WARMER else f"it was {after:.0f} °C"


def _speed(rounds: Sequence[Round]) -> float:
    return sum(r.n_tokens for r in rounds) / sum(r.end_s - r.start_s for r in rounds)


def _ratio_interval(first: Sequence[Round], last: Sequence[Round]) -> tuple[float, float] | None:
    """Of last / first at 95%; None with fewer than 3 blocks in either."""
    blocks = [_blocks(first), _blocks(last)]
    if min(map(len, blocks)) < 3:
        return None
    rng = np.random.default_rng(0)
    resampled = []
    for part in blocks:
        sums = part[rng.integers(len(part), size=(_RESAMPLES, len(part)))].sum(axis=1)
        resampled.append(sums[:, 0] / sums[:, 1])
    low, high = np.quantile(resampled[1] / resampled[0], [0.025, 0.975])
    return float(low), float(high)


def _blocks(rounds: Sequence[Round]) -> NDArray[np.float64]:
    """Tokens and seconds of neighbouring rounds that last 5 seconds together, [n_blocks, 2]; a rest shorter than that is left out."""
    blocks, tokens, seconds = [], 0, 0.0
    for r in rounds:
        tokens, seconds = tokens + r.n_tokens, seconds + r.end_s - r.start_s
        if seconds >= _BLOCK_S:
            blocks.append((tokens, seconds))
            tokens, seconds = 0, 0.0
    return np.array(blocks, np.float64).reshape(-1, 2)


def _steal_rate(conditions: Sequence[Conditions]) -> float | None:
    """Seconds stolen per second, over all CPUs."""
    known = [(c.time_s, c.steal_s) for c in conditions if c.steal_s is not None]
    if len(known) < 2:
        return None
    (time_a, steal_a), (time_b, steal_b) = known[0], known[-1]
    return (steal_b - steal_a) / (time_b - time_a)


def _means(parts: Sequence[Sequence[Conditions]], figure: Callable[[Conditions], float | None]) -> tuple[float, float] | None:
    known = [[value for c in part if (value := figure(c)) is not None] for part in parts]
    return (float(np.mean(known[0])), float(np.mean(known[1]))) if all(known) else None
