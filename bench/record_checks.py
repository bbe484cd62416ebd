"""What no record of a real run can say: time that runs backwards, energy below nothing, shares above one.

Types and finite numbers are checked before (bench/record_file.py). A file that was cut, edited or mixed up must not become a figure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from math import isclose
from statistics import median

from edgelm.bench.figures import tokens_per_s
from edgelm.bench.quality_gate import keeps_gate
from edgelm.bench.record import (
    Energy,
    EngineRun,
    LoadLevel,
    Measurement,
    MeterTrace,
    Power,
    Quality,
    Record,
    Request,
    Sustain,
    Trial,
)

_ID = re.compile(r"[0-9a-f]{12}")
_ROUNDING = 1e-6


def impossibilities(record: Record) -> Iterator[str]:
    """What cannot be, in words, with its place in the record."""
    yield from _head(record)
    for n, engine in enumerate(record.engines):
        yield from _within(f"engines.{n}", _engine(engine))
    for n, m in enumerate(record.measurements):
        yield from _within(f"measurements.{n}", _measurement(m, record.power))
    yield from _turns(record)
    for n, limits in enumerate(record.limits):
        if min(limits.n_threads, limits.bytes_per_s, limits.macs_per_s, limits.median_bytes_per_s, limits.median_macs_per_s) <= 0:
            yield f"limits.{n}: a limit of 0 or less"
    yield from _within("power", _power(record.power))
    firsts: dict[tuple[object, ...], Quality] = {}
    for n, quality in enumerate(record.quality):
        first = firsts.setdefault((quality.text_sha256, quality.reference, quality.n_tokens, quality.n_window), quality)
        yield from _within(f"quality.{n}", _quality(quality))
        yield from _within(f"quality.{n}.beside_first", _pair(quality, first))
    for n, level in enumerate(record.load.levels if record.load else ()):
        yield from _within(f"load.levels.{n}", _level(level, record.power))
    for n, sustain in enumerate(record.sustain):
        yield from _within(f"sustain.{n}", _sustain(sustain, record.power))


def _within(place: str, problems: Iterator[str]) -> Iterator[str]:
    return (f"{place}: {problem}" for problem in problems)


def _head(record: Record) -> Iterator[str]:
    if not _ID.fullmatch(record.id):
        yield f"id: {record.id!r} is not 12 hexadecimal digits"
    try:
        if datetime.fromisoformat(record.started).tzinfo is None:
            yield f"started: {record.started!r} has no offset from UTC"
    except ValueError:
        yield f"started: {record.started!r} is no ISO 8601 time"
    if record.seconds < 0:
        yield "seconds: it ended before it began"
    if (record.load is not None and record.kind != "load") or (record.sustain and record.kind != "sustain"):
        yield f"kind: {record.kind} has the figures of another command"


def _engine(engine: EngineRun) -> Iterator[str]:
    if engine.n_threads < 1:
        yield f"n_threads: {engine.n_threads}"
    for n, o in enumerate(engine.openings):
        times = [o.spawned_s, o.ready_s, o.opened_s] + ([o.first_token_s] if o.first_token_s is not None else [])
        if not _ascends(times):
            yield f"openings.{n}: its times do not follow each other"
        if o.cached is not None and not 0 <= o.cached <= 1:
            yield f"openings.{n}.cached: {o.cached} is no share"


def _measurement(m: Measurement, power: Power) -> Iterator[str]:
    if min(m.n_threads - 1, m.n_prompt, m.n_generate, m.depth) < 0:
        yield "a count of threads or tokens is too small"
    if m.phase != "decode" and m.n_prompt < 1:
        yield f"n_prompt: a {m.phase} without a prompt"
    n_stamps = 1 if m.phase == "prefill" else m.n_generate
    for n, trial in enumerate(m.trials):
        yield from _within(f"trials.{n}", _trial(trial, n_stamps))
    yield from _energy(m.energy, power)
    if m.limit is not None:
        fraction = m.limit.fraction
        if fraction is not None and not 0 < fraction <= 1:
            yield f"limit.fraction: {fraction} of what is possible"
        if fraction is not None and not isclose(fraction * m.limit.limit_tokens_per_s, _median_speed(m), rel_tol=_ROUNDING):
            yield "limit.fraction: it is not the speed over the limit"
        if min(m.limit.limit_tokens_per_s, m.limit.bytes_per_token, m.limit.macs_per_token) <= 0:
            yield "limit: a limit of 0 or less"


def _turns(record: Record) -> Iterator[str]:
    """Engines took turns, so no two trials are of the same time, and all are of the run's."""
    tests = [(m.engine, m.n_threads, m.phase, m.n_prompt, m.n_generate, m.depth) for m in record.measurements]
    if len(set(tests)) < len(tests):
        yield "measurements: the same one twice"
    engines = {(engine.engine, engine.n_threads) for engine in record.engines}
    for n, m in enumerate(record.measurements):
        if (m.engine, m.n_threads) not in engines:
            yield f"measurements.{n}: {m.engine} with so many threads is none of the record's engines"
    trials = sorted((trial for m in record.measurements for trial in m.trials if trial.stamps_s), key=lambda trial: trial.start_s)
    if not _ascends([edge for trial in trials for edge in (trial.start_s, trial.stamps_s[-1])]):
        yield "measurements: two trials at the same time"
    if trials and not 0 <= trials[0].start_s <= trials[-1].stamps_s[-1] <= record.seconds:
        yield "measurements: trials outside of the run"


def _trial(trial: Trial, n_stamps: int) -> Iterator[str]:
    if len(trial.stamps_s) != n_stamps:
        yield f"stamps_s: {len(trial.stamps_s)} of {n_stamps} timestamps"
    elif not _ascends((trial.start_s, *trial.stamps_s)):
        yield "stamps_s: time runs backwards"
    elif trial.stamps_s[-1] <= trial.start_s:
        yield "stamps_s: it took no time"
    if min(trial.minor_faults, trial.major_faults, trial.switches) < 0:
        yield "page faults or context switches below 0"


def _energy(energy: Energy | None, power: Power) -> Iterator[str]:
    if energy is None:
        return
    if energy.gross_j < 0 or energy.seconds <= 0 or (energy.uncertainty or 0.0) < 0:
        yield "energy: energy, time or uncertainty below 0"
    if energy.net_j is not None and energy.net_j > energy.gross_j:
        yield "energy.net_j: net is more than gross"
    if energy.meter not in {trace.meter.name for trace in power.traces}:
        yield f"energy.meter: {energy.meter!r} is none of the record's meters"


def _power(power: Power) -> Iterator[str]:
    names = [trace.meter.name for trace in power.traces]
    if len(set(names)) < len(names):
        yield "traces: two meters of one name"
    if power.headline is not None and power.headline not in names:
        yield f"headline: {power.headline!r} is none of the record's meters"
    if power.assumed_w is not None and power.assumed_w <= 0:
        yield f"assumed_w: {power.assumed_w} W"
    if any(window.end_s < window.start_s for window in power.idle):
        yield "idle: it ended before it began"
    for n, trace in enumerate(power.traces):
        yield from _within(f"traces.{n}", _trace(trace))


def _trace(trace: MeterTrace) -> Iterator[str]:
    if len(trace.times_s) != len(trace.values):
        yield f"{len(trace.times_s)} times, but {len(trace.values)} values"
    if not _ascends(trace.times_s):
        yield "times_s: time runs backwards"
    if trace.problem:  # it says itself that its values make no sense
        return
    if trace.meter.quantity == "energy" and not _ascends(trace.values):
        yield "values: energy runs backwards, and no problem is noted"
    if trace.meter.quantity == "power" and min(trace.values, default=0.0) < 0:
        yield "values: power below 0, and no problem is noted"


def _quality(q: Quality) -> Iterator[str]:
    if min(q.perplexity, q.reference_perplexity) < 1 or min(q.n_tokens, q.n_window) < 1:
        yield "a perplexity or a count below 1"
    if min(q.mean_kl, q.median_kl, q.p99_kl, q.max_kl) < -_ROUNDING:
        yield "a KL divergence below 0"
    if min(q.se_perplexity, q.se_log_ratio, q.se_mean_kl, q.se_top_agreement) < 0:
        yield "a standard error below 0"
    if not 0 <= q.top_agreement <= 1:
        yield f"top_agreement: {q.top_agreement} is no share"
    if q.passed is not (None if q.gate is None else keeps_gate(q.log_ratio, q.gate)):
        yield "passed: it contradicts the gate"


def _pair(q: Quality, first: Quality) -> Iterator[str]:
    pair = q.beside_first
    if pair is None:
        return
    if min(pair.se_log_ratio, pair.se_kl_ratio or 0.0) < 0:
        yield "a standard error below 0"
    if (pair.kl_ratio is None) != (pair.se_kl_ratio is None):
        yield "kl_ratio: a ratio without its error, or the other way round"
    if not isclose(pair.log_ratio, q.log_ratio - first.log_ratio, abs_tol=_ROUNDING):
        yield "log_ratio: it is not that of the two perplexities"
    if pair.kl_ratio is not None and not isclose(pair.kl_ratio * first.mean_kl, q.mean_kl, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
        yield "kl_ratio: it is not that of the two divergences"


def _level(level: LoadLevel, power: Power) -> Iterator[str]:
    if (level.concurrency is None) == (level.rate is None):
        yield "either concurrency or rate must be there"
    if level.requests and level.span.end_s <= level.span.start_s:
        yield "span: it took no time"
    for n, request in enumerate(level.requests):
        yield from _within(f"requests.{n}", _request(request))
    yield from _energy(level.energy, power)


def _request(request: Request) -> Iterator[str]:
    if not _ascends((request.due_s, *request.stamps_s, request.ended_s)) or request.ended_s < request.sent_s:
        yield "time runs backwards"
    if not request.error and not request.stamps_s:
        yield "an answer without text, and no error is noted"
    if request.n_generated < 0 or (request.n_prompt or 0) < 0:
        yield "a count of tokens below 0"


def _sustain(s: Sustain, power: Power) -> Iterator[str]:
    if not _ascends(s.stamps_s):
        yield "stamps_s: time runs backwards"
    if not _ascends([c.time_s for c in s.conditions]):
        yield "conditions: time runs backwards"
    if s.span.end_s < s.span.start_s:
        yield "span: it ended before it began"
    if not _ascends([edge for window in s.rounds for edge in (window.start_s, window.end_s)]):
        yield "rounds: time runs backwards"
    if s.ratio_interval is not None and not 0 <= s.ratio_interval[0] <= s.ratio_interval[1]:
        yield "ratio_interval: its ends are the wrong way round"
    if any(speed is not None and speed <= 0 for speed in (s.first_minute, s.steady)):
        yield "a speed of 0 or less"
    yield from _energy(s.energy, power)


def _median_speed(m: Measurement) -> float:
    sound = [trial for trial in m.trials if trial.stamps_s and trial.stamps_s[-1] > trial.start_s]
    return median(tokens_per_s(m, trial) for trial in sound) if sound else 0.0


def _ascends(times: Sequence[float]) -> bool:
    return all(a <= b for a, b in pairwise(times))
