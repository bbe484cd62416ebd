"""What two records can be compared by: each figure with the values it is made of, so that its noise can be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.bench.figures import Interval, speeds, unpaired_ratio
from edgelm.bench.load.goodput import is_good, level_figures, ttft_s
from edgelm.bench.record import Load, LoadLevel, Measurement, Record, State, Sustain

_N_BLOCKS = 10
_LEAST = 3
_RESAMPLES = 2000
_STEADY_S = 60.0


@dataclass(frozen=True)
class Sample:
    """One figure of one record.

    Attributes:
        figure: what it is, with its unit.
        values: independent of each other, as far as can be had [n]; empty where nothing was measured.
        statistic: what of the values the figure is.
        lower_is_better: for times.
    """

    figure: str
    values: NDArray[np.float64]
    statistic: Literal["median", "mean"]
    lower_is_better: bool = False
    state: State = "complete"

    @property
    def value(self) -> float:
        """The figure; only of a sample with values."""
        return float(np.median(self.values) if self.statistic == "median" else np.mean(self.values))


def samples(record: Record) -> Mapping[tuple[str, str], Sample]:
    """Every figure that can be compared, by what was measured and the figure's name."""
    found = [(measurement_name(m), Sample("tokens/s", speeds(m), "median", state=m.state)) for m in record.measurements]
    if record.load is not None:
        found += [(level_name(record.load, level), sample) for level in record.load.levels for sample in _of_level(record.load, level)]
    found += [(sustain_name(s), _of_sustain(s, record.state)) for s in record.sustain]
    return {(name, sample.figure): sample for name, sample in found}


def measurement_name(m: Measurement) -> str:
    """What must be equal in both records, in words."""
    tokens = {"prefill": f"{m.n_prompt}", "decode": f"{m.n_generate}", "both": f"{m.n_prompt}+{m.n_generate}"}[m.phase]
    return f"{m.phase} {tokens} at depth {m.depth}, {m.engine}, {_threads(m.n_threads)}"


def level_name(load: Load, level: LoadLevel) -> str:
    """What must be equal in both records, in words."""
    arrivals = f"{level.concurrency} at once" if level.concurrency is not None else f"{level.rate:g} requests/s"
    return f"{arrivals}, {load.n_prompt}+{load.n_generate} tokens"


def sustain_name(s: Sustain) -> str:
    """What must be equal in both records, in words."""
    return f"sustain, {s.engine}, {_threads(s.n_threads)}"


def ratio(new: Sample, old: Sample) -> Interval | None:
    """new / old with a 95% bootstrap interval, each resampled by itself (Efron 1979); None if the old figure is 0.

    Ends are None of fewer than 3 values, or where the old figure may well be 0.
    """
    if old.value <= 0:
        return None
    if new.statistic == "median":
        return unpaired_ratio(new.values, old.values)
    value = new.value / old.value
    if min(len(new.values), len(old.values)) < _LEAST:
        return Interval(value, None, None)
    rng = np.random.default_rng(0)
    above, below = (rng.choice(s.values, (_RESAMPLES, len(s.values))).mean(axis=1) for s in (new, old))
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.quantile(above / below, [0.025, 0.975])
    return Interval(value, float(low), float(high)) if np.isfinite([low, high]).all() else Interval(value, None, None)


def _of_level(load: Load, level: LoadLevel) -> Iterator[Sample]:
    whole = [request for request in level.requests if not request.error]
    counted = all(request.counted for request in whole)
    texts = [(stamp, r.n_generated / len(r.stamps_s)) for r in whole for stamp in r.stamps_s]
    yield Sample("tokens/s" if counted else "pieces/s", _block_rates(level, texts), "mean", state=level.state)
    yield Sample("TTFT p50 s", np.array([ttft_s(request) for request in whole], np.float64), "median", True, level.state)
    if level_figures(level, load).good_per_s is not None:
        good = [(request.ended_s, 1.0) for request in level.requests if is_good(request, load)]
        yield Sample(f"goodput/s ({_targets(load)})", _block_rates(level, good), "mean", state=level.state)


def _block_rates(level: LoadLevel, events: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Weights of timed events per second in equal blocks of the span (batch means): their mean is the level's, their spread its noise."""
    n_blocks = min(_N_BLOCKS, sum(not request.error for request in level.requests))
    if n_blocks == 0:
        return np.empty(0)
    times, weights = [time for time, _ in events], [weight for _, weight in events]
    counts, edges = np.histogram(times, n_blocks, (level.span.start_s, level.span.end_s), weights=weights)
    return np.asarray(counts / np.diff(edges), np.float64)


def _of_sustain(s: Sustain, state: State) -> Sample:
    """Tokens per second of the last third, at least a minute, in blocks of neighbouring rounds."""
    if not s.rounds or s.steady is None:
        return Sample("steady tokens/s", np.empty(0), "mean", state=state)
    begin, end = s.rounds[0].start_s, s.rounds[-1].end_s
    border = end - max((end - begin) / 3, _STEADY_S)
    stamps = np.asarray(s.stamps_s)
    late = [r for r in s.rounds if r.start_s >= border]
    tokens = np.array([np.count_nonzero((stamps > r.start_s) & (stamps <= r.end_s)) for r in late], np.float64)
    seconds = np.array([r.end_s - r.start_s for r in late])
    blocks = np.array_split(np.arange(len(late)), min(_N_BLOCKS, len(late)))
    return Sample("steady tokens/s", np.array([tokens[b].sum() / seconds[b].sum() for b in blocks]), "mean", state=state)


def _targets(load: Load) -> str:
    ttft = [f"TTFT {load.ttft_target_s:g} s"] if load.ttft_target_s is not None else []
    tpot = [f"TPOT {load.tpot_target_s * 1e3:g} ms"] if load.tpot_target_s is not None else []
    return ", ".join(ttft + tpot)


def _threads(n: int) -> str:
    return f"{n} thread" if n == 1 else f"{n} threads"
