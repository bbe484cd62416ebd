"""What casts doubt on a record's figures, in words for people."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgelm.bench.figures import median_interval, speeds
from edgelm.bench.quality_gate import gate_verdict, is_undecided
from edgelm.bench.record import Conditions, LoadLevel, Measurement, Record, Sustain, Trial
from edgelm.bench.report.energy_sections import level_name
from edgelm.bench.report.section import case_name, number, percent

_WITHIN = 0.01
_CLOCK_STEP_S = 0.1
_CLOCK_FALL = 0.05
_STEAL = 0.002


def doubts(record: Record) -> tuple[str, ...]:
    """Everything a reader should know before trusting a figure; empty if nothing is known against it."""
    return (
        *_incomplete(record),
        *_model(record),
        *_machine(record),
        *_crowded(record),
        *_clock(record),
        *_wide_intervals(record),
        *_trials(record),
        *_meters(record),
        *(gate_verdict(quality) + "." for quality in record.quality if is_undecided(quality)),
    )


def _incomplete(record: Record) -> Iterator[str]:
    if record.state != "complete":
        yield f"{record.state.upper()}: {record.reason or 'no reason is recorded'}; what is here was measured all the same."
    for engine in record.engines:
        if engine.state != "complete":
            yield f"{engine.engine} with {_threads(engine.n_threads)}: {engine.state} ({engine.reason or 'no reason is recorded'})."
    for m in record.measurements:
        if m.state != "complete":
            name = f"{case_name(m.phase, m.n_prompt, m.n_generate)} at depth {m.depth} of {m.engine}, {_threads(m.n_threads)}"
            yield f"{name}: {m.state} after {_count(len(m.trials), 'trial')} ({m.reason or 'no reason is recorded'})."
    for level in record.load.levels if record.load else ():
        if level.state != "complete":
            yield f"{level_name(level)}: {level.state} ({level.reason or 'no reason is recorded'})."
        elif level.reason:
            yield f"{level_name(level)}: {level.reason}."


def _model(record: Record) -> Iterator[str]:
    if record.model is not None and record.model.is_random:
        yield f"{record.model.name} has random weights: its speed is true, its text is noise."


def _machine(record: Record) -> Iterator[str]:
    machine = record.machine
    if machine.virtual:
        yield f"Measured in a virtual machine or container ({machine.virtual}): others may share its processor and memory."
    if machine.on_battery:
        yield "Measured on battery: the machine may have saved power."
    if machine.governor not in (None, "", "performance"):
        yield f"The CPU's frequency governor was {machine.governor}, not performance: the clock may have followed the load late."


def _crowded(record: Record) -> Iterator[str]:
    most = max((engine.n_threads for engine in record.engines), default=0)
    if most > record.machine.n_cores:
        yield f"{_threads(most)} shared {_count(record.machine.n_cores, 'core')}: more threads than cores wait for each other."


def _clock(record: Record) -> Iterator[str]:
    if abs(record.clock_step_s) > _CLOCK_STEP_S:
        yield (
            f"The wall clock moved by {number(record.clock_step_s)} s against the monotonic one: it was set, or the machine slept. "
            "Times here are of the monotonic one."
        )


def _wide_intervals(record: Record) -> Iterator[str]:
    asked = _asked(record)
    found = [(m, median_interval(speeds(m)).half_width) for m in record.measurements if m.trials]
    few = sum(width is None for _, width in found)
    if few:
        yield f"{_count(few, 'measurement')} with fewer than 3 trials: no interval can be told."
    wide = [(m, width) for m, width in found if width is not None and width > asked]
    if wide:
        m, width = max(wide, key=lambda pair: pair[1])
        worst = (
            f"{case_name(m.phase, m.n_prompt, m.n_generate)} at depth {m.depth} of {m.engine}, {_threads(m.n_threads)}: ±{percent(width)}"
        )
        yield f"{len(wide)} of {len(found)} intervals are wider than ±{percent(asked)}, which was wanted; the widest is {worst}."


def _asked(record: Record) -> float:
    text = record.settings.get("within", "")
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return _WITHIN


def _trials(record: Record) -> Iterator[str]:
    trials = [trial for m in record.measurements for trial in m.trials]
    faults = sum(trial.major_faults for trial in trials)
    if faults:
        yield f"{_count(faults, 'page fault')} in the trials had to wait for the disk: memory was short, or the model not all read yet."
    yield from _steal([(t.before, t.after) for t in trials])
    yield from _slower_clock(trials)
    for s in record.sustain:
        yield from _steal([(s.conditions[0], s.conditions[-1])] if s.conditions else [])
        if s.throttled:
            yield f"THROTTLED: {s.engine} with {_threads(s.n_threads)} does not hold the first minute's speed ({s.reason})."


def _steal(spans: list[tuple[Conditions | None, Conditions | None]]) -> Iterator[str]:
    stolen = seconds = 0.0
    for before, after in spans:
        if before is None or after is None or before.steal_s is None or after.steal_s is None:
            continue
        stolen += after.steal_s - before.steal_s
        seconds += after.time_s - before.time_s
    if seconds > 0 and stolen / seconds > _STEAL:
        yield f"A hypervisor gave {number(stolen)} s of this machine's processor time to others within {number(seconds)} s of measuring."


def _slower_clock(trials: list[Trial]) -> Iterator[str]:
    clocks = [t.after.mhz for t in sorted(trials, key=lambda t: t.start_s) if t.after is not None and t.after.mhz is not None]
    third = len(clocks) // 3
    if third == 0:
        return
    early, late = float(np.median(clocks[:third])), float(np.median(clocks[-third:]))
    if late < early * (1 - _CLOCK_FALL):
        yield f"The CPU's clock fell from {number(early)} to {number(late)} MHz in the course of the run."


def _meters(record: Record) -> Iterator[str]:
    for trace in record.power.traces:
        if trace.problem:
            yield f"Meter {trace.meter.name}: {trace.problem}."
    results: list[Measurement | LoadLevel | Sustain] = [*record.measurements, *(record.load.levels if record.load else ()), *record.sustain]
    missing = [result.energy_reason for result in results if result.energy is None and result.energy_reason]
    if missing and len(missing) < len(results):
        yield f"{_count(len(missing), 'measurement')} without energy: {'; '.join(dict.fromkeys(missing))}."
    without_net = [result.energy_reason for result in results if result.energy is not None and result.energy.net_j is None]
    if any(without_net):
        yield f"{_count(len(without_net), 'measurement')} without net energy: {next(filter(None, without_net))}."


def _threads(n: int) -> str:
    return _count(n, "thread")


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
