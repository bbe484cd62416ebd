"""Two records side by side: what is faster, slower, or cannot be told apart, and what else differs between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import hypot
from typing import Literal

from edgelm.bench.compare_samples import Sample, level_name, measurement_name, ratio, samples, sustain_name
from edgelm.bench.energy_figures import EnergyShare, level_shares, measurement_share, sustain_share
from edgelm.bench.figures import Interval
from edgelm.bench.quality_gate import quality_name
from edgelm.bench.record import Energy, Quality, Record, State
from edgelm.bench.record_differences import differences
from edgelm.errors import InvalidRequestError

Verdict = Literal["faster", "slower", "no difference seen", "cannot be told"]


@dataclass(frozen=True)
class Change:
    """One figure in both records.

    Attributes:
        name: what was measured.
        figure: what of it, with its unit.
        old, new: in the first record and in the second; None where it began but nothing was measured.
        ratio: new / old with its 95% interval; None where there is none.
        verdict: "cannot be told" without an interval.
        below_gate: whether the second is slower by more than the gate allows, the interval's whole length; None if that cannot be judged.
        may_be_below: whether a part of the interval is, so that such a fall cannot be ruled out.
        states: of both.
    """

    name: str
    figure: str
    old: float | None
    new: float | None
    ratio: Interval | None
    verdict: Verdict
    below_gate: bool | None
    may_be_below: bool
    states: tuple[State, State]


@dataclass(frozen=True)
class EnergyChange:
    """Gross energy of one unit of work by the same kind of meter in both records.

    Attributes:
        ratio: new / old.
        uncertainty: relative, of the ratio, if both are known; at most, because what a meter is wrong by is partly the same in both.
    """

    name: str
    unit: str
    meter: str
    old_j: float
    new_j: float
    ratio: float
    uncertainty: float | None

    @property
    def verdict(self) -> str:
        """In words."""
        if self.uncertainty is None:
            return "uncertainty not known"
        if abs(self.ratio - 1) <= self.uncertainty:
            return "within the uncertainty"
        return "less" if self.ratio < 1 else "more"


@dataclass(frozen=True)
class QualityChange:
    """Quality of one engine at one precision in both records, on the same text and reference."""

    old: Quality
    new: Quality


@dataclass(frozen=True)
class Comparison:
    """Two records.

    Attributes:
        gate: by how much a speed may fall, relative; None for no gate.
        differences: of models, machines, software and settings, in words.
        only_old, only_new: what only one of them has.
        remarks: what is left out, and why.
    """

    old: Record
    new: Record
    gate: float | None
    changes: tuple[Change, ...]
    energies: tuple[EnergyChange, ...]
    qualities: tuple[QualityChange, ...]
    differences: tuple[str, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the gates are not kept, in words; empty if they are. A gate on what cannot be judged is not kept."""
        return tuple(_failures(self))


def compare_records(old: Record, new: Record, gate: float | None = None) -> Comparison:
    """Compare everything that both records have.

    Args:
        gate: by how much a speed may fall, relative; None for no gate.

    Raises:
        InvalidRequestError: the records are of different kinds, or have nothing in common.
    """
    if old.kind != new.kind:
        raise InvalidRequestError(f"one record is of edgebench {old.kind}, the other of edgebench {new.kind}; compare two of one kind")
    before, after = samples(old), samples(new)
    qualities, quality_remarks = _qualities(old, new)
    common = [key for key in before if key in after]
    if not common and not qualities:
        raise InvalidRequestError(f"the records have nothing in common: the first has {_listed(before)}; the second has {_listed(after)}")
    energies, energy_remarks = _energies(old, new)
    return Comparison(
        old=old,
        new=new,
        gate=gate,
        changes=tuple(_change(name, before[name, figure], after[name, figure], gate) for name, figure in common),
        energies=energies,
        qualities=qualities,
        differences=tuple(differences(old, new)),
        only_old=_names(key for key in before if key not in after),
        only_new=_names(key for key in after if key not in before),
        remarks=tuple(dict.fromkeys((*energy_remarks, *quality_remarks))),
    )


def _change(name: str, old: Sample, new: Sample, gate: float | None) -> Change:
    there = len(old.values) > 0 and len(new.values) > 0
    found = ratio(new, old) if there else None
    speed = _as_speed(found, old.lower_is_better)
    return Change(
        name=name,
        figure=old.figure,
        old=old.value if len(old.values) else None,
        new=new.value if len(new.values) else None,
        ratio=found,
        verdict=_verdict(speed),
        below_gate=None if gate is None or speed is None else speed[1] < 1 - gate,
        may_be_below=gate is not None and speed is not None and speed[0] < 1 - gate,
        states=(old.state, new.state),
    )


def _as_speed(found: Interval | None, lower_is_better: bool) -> tuple[float, float] | None:
    """The interval of a ratio of speeds: that of times is the other way round."""
    if found is None or found.low is None or found.high is None or (lower_is_better and found.low <= 0):
        return None
    return (1 / found.high, 1 / found.low) if lower_is_better else (found.low, found.high)


def _verdict(speed: tuple[float, float] | None) -> Verdict:
    if speed is None:
        return "cannot be told"
    low, high = speed
    return "faster" if low > 1 else "slower" if high < 1 else "no difference seen"


def _failures(comparison: Comparison) -> Iterator[str]:
    gate = comparison.gate
    for change in comparison.changes if gate is not None else ():
        where = f"{change.name}, {change.figure}"
        if change.below_gate:
            yield f"{where}: slower by more than {gate:.2%}, all of its interval"
        elif change.old is not None and change.new is None:
            yield f"{where}: the second record has no figure ({change.states[1]})"
        elif change.old is not None and change.below_gate is None:
            yield f"{where}: cannot be judged, because the samples are too small for an interval; measure more"
    if gate is not None and comparison.new.state != "complete":
        yield from (f"{name}: not in the second record, which is {comparison.new.state}" for name in comparison.only_old)
    for q in comparison.new.quality:
        if q.passed is False:
            yield f"quality of {quality_name(q)}: perplexity rises by more than the {q.gate:.2%} that were allowed"


def _energies(old: Record, new: Record) -> tuple[tuple[EnergyChange, ...], list[str]]:
    before, after = dict(_shares(old)), dict(_shares(new))
    if not before or not after:
        lacking = " and ".join(name for name, shares in (("first", before), ("second", after)) if not shares)
        return (), [f"energy is not compared: none was measured in the {lacking} record"]
    changes, remarks = [], []
    for name, (energy, share) in before.items():
        if name not in after:
            continue
        other, new_share = after[name]
        what, what_new = _meter(old, energy), _meter(new, other)
        if what != what_new:
            remarks.append(f"energy is not compared where the meters differ: {what}, then {what_new}")
        elif share.gross_j > 0:
            both = share.uncertainty is not None and new_share.uncertainty is not None
            uncertainty = hypot(share.uncertainty or 0.0, new_share.uncertainty or 0.0) if both else None
            label, unit = name
            changes.append(
                EnergyChange(label, unit, what, share.gross_j, new_share.gross_j, new_share.gross_j / share.gross_j, uncertainty)
            )
    return tuple(changes), remarks


def _shares(record: Record) -> Iterator[tuple[tuple[str, str], tuple[Energy, EnergyShare]]]:
    found = [(measurement_name(m), m.energy, measurement_share(m)) for m in record.measurements]
    if record.load is not None:
        load = record.load
        found += [(level_name(load, level), level.energy, share) for level in load.levels for share in level_shares(level)]
    found += [(sustain_name(s), s.energy, sustain_share(s)) for s in record.sustain]
    for name, energy, share in found:
        if energy is not None and share is not None:
            yield (name, share.unit), (energy, share)


def _meter(record: Record, energy: Energy) -> str:
    """What a meter covers and what its figures are: only the same of both can be compared."""
    info = next((trace.meter for trace in record.power.traces if trace.meter.name == energy.meter), None)
    return f"{info.domain if info else energy.meter} ({energy.kind})"


def _qualities(old: Record, new: Record) -> tuple[tuple[QualityChange, ...], list[str]]:
    changes, remarks = [], []
    for q in old.quality:
        others = [other for other in new.quality if quality_name(other) == quality_name(q)]
        other = next((other for other in others if _basis(other) == _basis(q)), None)
        if other is not None:
            changes.append(QualityChange(q, other))
        elif others:
            remarks.append(f"quality of {quality_name(q)} is not compared: another text, length, window or reference")
    return tuple(changes), remarks


def _basis(q: Quality) -> tuple[object, ...]:
    return q.text_sha256, q.n_tokens, q.n_window, q.reference


def _names(keys: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{name}, {figure}" for name, figure in keys))


def _listed(found: Mapping[tuple[str, str], Sample]) -> str:
    names = _names(found)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return "; ".join(names[:3]) + more if names else "no figure"
