"""Which meter's energies are shown: the one that sees most of the machine, among those that may be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgelm.bench.power.base import AbsentMeter
from edgelm.bench.power.soundness import trace_problem
from edgelm.bench.record import MeterInfo, MeterTrace

_WIDTHS = ("component", "package", "module", "device", "wall")
_ELSEWHERE = "measure at the socket, with --meter shelly://HOST (or tasmota, kasa), or with edgebench power import"
_TOLERANCE = 0.95


def judge_traces(traces: Sequence[MeterTrace]) -> tuple[MeterTrace, ...]:
    """The traces, each with what is wrong with it in `problem`."""
    judged = [replace(trace, problem=trace_problem(trace)) for trace in traces]
    return tuple(replace(trace, problem=trace.problem or _contradiction(trace, judged)) for trace in judged)


def choose_headline(traces: Sequence[MeterTrace]) -> str | None:
    """Name of the widest usable meter; of several, one that measures before a model, and a counter before samples.

    An estimate is never chosen, nor a component (a graphics card that idles, a rail of unknown extent), nor a part of a meter of the
    same width: one socket of two does not stand for both.
    """
    infos = {trace.meter.name: trace.meter for trace in traces}
    usable = [trace.meter for trace in traces if not trace.problem and _may_lead(trace.meter) and not _is_part(trace.meter, infos)]
    return max(usable, key=_preference).name if usable else None


def why_none(traces: Sequence[MeterTrace], absent: Sequence[AbsentMeter]) -> str:
    """Why there is no headline, and how to get one."""
    failed = [f"{trace.meter.name}: {trace.problem}" for trace in traces if trace.problem]
    if any(trace.problem and _may_lead(trace.meter) for trace in traces):
        return "; ".join(failed)
    parts = ", ".join(trace.meter.name for trace in traces if not trace.problem)
    found = f"only parts of the machine are measured: {parts}" if parts else "no power meter was found"
    advised = [f"{meter.name}: {meter.reason}: {meter.advice}" for meter in absent if meter.advice]
    return "; ".join([found, *failed, *advised, _ELSEWHERE])


def _may_lead(meter: MeterInfo) -> bool:
    return meter.kind != "estimate" and meter.scope != "component"


def _preference(meter: MeterInfo) -> tuple[int, bool, bool, float, float]:
    uncertainty = 1.0 if meter.uncertainty is None else meter.uncertainty
    return _WIDTHS.index(meter.scope), meter.kind == "measured", meter.quantity == "energy", -uncertainty, -meter.period_s


def _is_part(meter: MeterInfo, infos: dict[str, MeterInfo]) -> bool:
    whole = infos.get(meter.within or "")
    return whole is not None and whole.scope == meter.scope


def _contradiction(trace: MeterTrace, traces: Sequence[MeterTrace]) -> str:
    """A meter that shows less than one of its parts does not see what it says it does."""
    own = mean_watts(trace)
    for part in traces:
        theirs = mean_watts(part) if part.meter.within == trace.meter.name and not part.problem else None
        if own is not None and theirs is not None and own < _TOLERANCE * theirs:
            return f"it shows {own:.2f} W in the mean, but its part {part.meter.name} {theirs:.2f} W"
    return ""


def mean_watts(trace: MeterTrace) -> float | None:
    """Over the whole trace; None of one that may not be believed, or has no length."""
    if trace_problem(trace):
        return None
    if trace.meter.quantity == "energy":
        return (trace.values[-1] - trace.values[0]) / (trace.times_s[-1] - trace.times_s[0])
    return sum(trace.values) / len(trace.values)
