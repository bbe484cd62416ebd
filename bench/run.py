"""`edgebench run` as a function: speed, energy, roofline and quality of engines on one model, in one record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgelm.bench.interleave import Interleaving, Progress, Workload
from edgelm.bench.limits import measure_limits, merge_limits
from edgelm.bench.machine import describe_machine
from edgelm.bench.model_facts import describe_model
from edgelm.bench.power.energy import energy_of
from edgelm.bench.power.session import ANY_METER, PowerWishes
from edgelm.bench.quality import QualityTest, qualities
from edgelm.bench.record import EngineRun, Limits, Measurement, Quality, Record, State, Window
from edgelm.bench.roofline import limit_share
from edgelm.bench.run_clock import RunClock
from edgelm.errors import EdgeLMError


def run_benchmark(
    path: Path,
    workload: Workload,
    settings: Mapping[str, object],
    progress: Progress,
    *,
    power: PowerWishes = ANY_METER,
    quality: QualityTest | None = None,
    is_random: bool = False,
    with_limits: bool = True,
) -> Record:
    """Measure, and return the record: also after Ctrl-C or when engines fail, with everything measured until then.

    Args:
        path: of a GGUF file or an exported folder.
        settings: of the command, to be kept in the record.
        progress: called with what is being done and the fraction that is done.
        is_random: whether the model's weights are random.
        with_limits: whether the machine's limits are measured for the roofline.

    Raises:
        EdgeLMError: the model cannot be read at all, a meter that was named does not answer, or the settings make no sense.
    """
    clock = RunClock.start()
    with power.session(clock.origin) as session:
        progress(f"reading {path.name}", 0.0)
        model = describe_model(path)
        if quality is not None:
            quality.windows([path])  # what is wrong with it is told now, not after the engines ran
        bench = Interleaving(path, workload, clock.origin, progress, session.mark)
        limits: list[Limits] = []
        found: list[Quality] = []
        state: State = "complete"
        reason = ""
        try:
            progress("resting", 0.0)
            session.idle(power.idle_s)
            if with_limits:
                limits += _measure_limits(workload.threads, lambda line: progress(line, 0.0))
            bench.run()
            if with_limits:  # again, because a machine that was busy the first time can do more than it showed
                limits += _measure_limits(workload.threads, lambda line: progress(line, 1.0))
            progress("resting", 1.0)
            session.idle(power.idle_s)
            if quality is not None:
                engines = [(name, workload.precision) for name in workload.backends]
                found.extend(qualities([path], engines, quality, max(workload.threads), lambda line: progress(line, 1.0)))
        except KeyboardInterrupt:
            state, reason = "interrupted", "ended by Ctrl-C; what was measured before is kept"
        except EdgeLMError as error:
            state, reason = "failed", str(error)
    failed = [engine for engine in bench.engines if engine.state == "failed"]
    if failed and state == "complete":
        state, reason = "failed", "; ".join(dict.fromkeys(f"{engine.engine}: {engine.reason}" for engine in failed))
    record = Record(
        kind="run",
        id=clock.id,
        started=clock.started,
        machine=describe_machine(),
        settings={name: str(value) for name, value in settings.items()} | power.settings(),
        model=replace(model, is_random=is_random or model.is_random),
        state=state,
        reason=reason,
        engines=tuple(bench.engines),
        limits=merge_limits(limits),
        power=session.power(),
        quality=tuple(found),
        clock_step_s=clock.step_s,
        seconds=clock.seconds,
    )
    return replace(record, measurements=tuple(_judged(measurement, record) for measurement in bench.measurements))


def _measure_limits(threads: Sequence[int], progress: Callable[[str], None]) -> list[Limits]:
    return [measure_limits(n_threads, progress) for n_threads in threads]


def _judged(measurement: Measurement, record: Record) -> Measurement:
    """The measurement with its energy and its share of the machine's limit."""
    windows = [Window(trial.start_s, trial.stamps_s[-1]) for trial in measurement.trials]
    energy, reason = energy_of(record.power, windows)
    engine = _find_engine(measurement, record.engines)
    limits = next((limits for limits in record.limits if limits.n_threads == measurement.n_threads), None)
    share = limit_share(measurement, engine, record.model, limits) if engine and limits and record.model and windows else None
    return replace(measurement, energy=energy, energy_reason=reason, limit=share)


def _find_engine(measurement: Measurement, engines: Sequence[EngineRun]) -> EngineRun | None:
    wanted = (measurement.engine, measurement.n_threads)
    return next((engine for engine in engines if (engine.engine, engine.n_threads) == wanted), None)
