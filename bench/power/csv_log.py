"""Taking the log of a meter outside of the machine into a record: aligned by the wall clock, all energies computed anew."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.bench.power.csv_columns import Choice, Samples, read_samples
from edgelm.bench.power.energy import energy_of, integrate
from edgelm.bench.power.headline import choose_headline, judge_traces
from edgelm.bench.record import LoadLevel, Measurement, MeterInfo, MeterTrace, Power, Record, Sustain, Window
from edgelm.errors import MeterError, RecordError

Scope = Literal["component", "package", "module", "device", "wall"]

MAX_CLOCK_STEP_S = 0.25
_MARGIN_S = 60.0
_GAP_S = 0.5
_GAP_PERIODS = 5
_DOMAINS = {"wall": "wall socket", "device": "whole device", "module": "module", "package": "package", "component": "component"}


def import_log(
    record: Record, log: Path, scope: Scope, choice: Choice | None = None, offset_s: float | None = None, uncertainty: float | None = None
) -> Record:
    """The record with the log as one more trace, and all energies as they follow from it.

    Args:
        scope: what the meter covered.
        offset_s: added to the log's times: what the meter's clock was behind; for times that count from the log's own start, how long
            after the record's beginning that was.
        uncertainty: relative, as the meter's maker states it.

    Raises:
        RecordError: the record's own clock was set meanwhile, so that nothing can be aligned with it.
        MeterError: the log makes no sense, or does not cover the time of the record.
    """
    started = _started(record)
    samples = read_samples(log, choice or Choice(), started.utcoffset())
    times = _aligned(samples, started.timestamp(), offset_s, log)
    trace = _trace(record, log, scope, samples, times, uncertainty)
    if any(other.meter.name == trace.meter.name for other in record.power.traces):
        raise RecordError(f"the record holds {trace.meter.name} already; give the record from before, or rename the log")
    power = _power(record.power, trace)
    settings = {**record.settings, "imported-log": log.name}
    if power.headline == record.power.headline:
        return replace(record, settings=settings, power=power)
    return replace(
        record,
        settings=settings,
        power=power,
        measurements=tuple(_measured(measurement, power) for measurement in record.measurements),
        load=replace(record.load, levels=tuple(_loaded(level, power) for level in record.load.levels)) if record.load else None,
        sustain=tuple(_sustained(sustain, power) for sustain in record.sustain),
    )


def _started(record: Record) -> datetime:
    if abs(record.clock_step_s) > MAX_CLOCK_STEP_S:
        raise RecordError(
            f"the machine's clock moved by {record.clock_step_s:+.2f} s during the run (it was set, or the machine slept),"
            " so that no log can be aligned with it; run again with a clock that is kept by NTP"
        )
    try:
        started = datetime.fromisoformat(record.started)
    except ValueError as error:
        raise RecordError(f"the record began at {record.started!r}, which is no time; run again") from error
    if started.tzinfo is None:
        raise RecordError(f"the record began at {record.started}, without an offset from UTC; run again")
    return started


def _aligned(samples: Samples, started_s: float, offset_s: float | None, log: Path) -> NDArray[np.float64]:
    """The log's times as seconds since the record's beginning."""
    times = np.array(samples.times_s)
    if samples.is_wall_clock:
        return times - started_s + (offset_s or 0.0)
    if offset_s is None:
        raise MeterError(
            f"the times of {log} count from its own start; say with --offset how many seconds after the record's beginning that was"
        )
    return times + offset_s


def _trace(
    record: Record,
    log: Path,
    scope: Scope,
    samples: Samples,
    times: NDArray[np.float64],
    uncertainty: float | None,
) -> MeterTrace:
    during = (times >= 0) & (times <= record.seconds)
    if during.sum() < 2:
        raise MeterError(
            f"{log} runs from {times[0]:.1f} to {times[-1]:.1f} s of the record, which lasted from 0 to {record.seconds:.1f} s:"
            " the two do not overlap; is it the right log, and are both clocks right? --offset moves the log's times"
        )
    kept = (times >= -_MARGIN_S) & (times <= record.seconds + _MARGIN_S)
    steps = np.diff(times[kept])
    period_s = float(np.median(steps))
    worst = int(steps.argmax())
    if steps[worst] > max(_GAP_S, _GAP_PERIODS * period_s):
        raise MeterError(
            f"{log} has a gap of {steps[worst]:.1f} s at {times[kept][worst]:.1f} s of the record; its usual step is {period_s:.3g} s"
        )
    values = np.array(samples.values)[kept]
    if samples.quantity == "energy":
        values -= values[0]
    stated = "as the user stated" if uncertainty is not None else "not stated"
    info = MeterInfo(
        name=f"log:{log.name}",
        domain=f"{_DOMAINS[scope]}, by the log {log.name}",
        scope=scope,
        kind="measured",
        quantity=samples.quantity,
        period_s=period_s,
        uncertainty=uncertainty,
        source=f"a meter's log, aligned by the wall clock; uncertainty {stated}",
    )
    return MeterTrace(info, tuple(times[kept].tolist()), tuple(values.tolist()))


def _power(before: Power, trace: MeterTrace) -> Power:
    traces = judge_traces([*before.traces, trace])
    headline = choose_headline(traces)
    chosen = next((trace for trace in traces if trace.meter.name == headline), None)
    if chosen is None or headline == before.headline:
        return replace(before, traces=traces)
    idle_w = [integral.joules / integral.seconds for window in before.idle if (integral := integrate(chosen, [window])[0]) is not None]
    return replace(before, headline=headline, reason="", traces=traces, idle_w=tuple(idle_w) if len(idle_w) == len(before.idle) else ())


def _measured(measurement: Measurement, power: Power) -> Measurement:
    energy, reason = energy_of(power, [Window(trial.start_s, trial.stamps_s[-1]) for trial in measurement.trials])
    return replace(measurement, energy=energy, energy_reason=reason)


def _loaded(level: LoadLevel, power: Power) -> LoadLevel:
    energy, reason = energy_of(power, [level.span])
    return replace(level, energy=energy, energy_reason=reason)


def _sustained(sustain: Sustain, power: Power) -> Sustain:
    energy, reason = energy_of(power, [sustain.span])
    return replace(sustain, energy=energy, energy_reason=reason)
