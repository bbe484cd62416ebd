"""Tables of watts and joules, or the one line that says why there are none."""

from __future__ import annotations

from collections.abc import Iterator

from edgelm.bench.energy_figures import EnergyShare, level_shares, measurement_share, sustain_share
from edgelm.bench.record import Energy, LoadLevel, Power, Record
from edgelm.bench.report.section import Section, case_name, number, percent
from edgelm.bench.report.speed_sections import by_test

_COLUMNS = ("what", "engine", "watts", "net watts", "per", "J", "net J", "tokens/J", "±")


def energy(record: Record) -> tuple[Section, ...]:
    """One table per meter that energies were taken from, and what else is to be said of power."""
    entries = list(_entries(record))
    meters = dict.fromkeys(e.meter for e, _, _, _ in entries)
    tables = [_table(record.power, meter, entries) for meter in meters]
    remarks = [Section("Power", remark=text) for text in power_lines(record)]
    return (*tables, *remarks)


def power_lines(record: Record) -> tuple[str, ...]:
    """`power: not measured (...)` where no energy is known, and the assumed watts where there are any."""
    lines = []
    if not any(True for _ in _entries(record)):
        lines.append(f"power: not measured ({why_no_energy(record)})")
    if record.power.assumed_w is not None:
        lines.append(
            f"power: {number(record.power.assumed_w)} W were given by hand (--estimate-tdp): an assumption, measured by nothing, "
            "and left out of every figure and comparison"
        )
    return tuple(lines)


def why_no_energy(record: Record) -> str:
    """Why a record has no energy, in words."""
    power = record.power
    reasons = [power.reason, *(t.problem for t in power.traces if t.meter.name == power.headline), *_energy_reasons(record)]
    return next((reason for reason in reasons if reason), "no meter was asked for; edgebench power list shows which there are")


def level_name(level: LoadLevel) -> str:
    """ "4 at once", or "2.5 requests/s"."""
    if level.concurrency is not None:
        return f"{level.concurrency} at once"
    return f"{number(level.rate)} requests/s"


def _table(power: Power, meter: str, entries: list[tuple[Energy, EnergyShare, str, str]]) -> Section:
    info = next((trace.meter for trace in power.traces if trace.meter.name == meter), None)
    kinds = dict.fromkeys(e.kind for e, _, _, _ in entries if e.meter == meter)
    where = f"{info.domain}, {meter}" if info else meter
    rows = tuple(_cells(share, what, engine) for e, share, what, engine in entries if e.meter == meter)
    idle = f" Idle: {' and '.join(number(w) for w in power.idle_w)} W." if meter == power.headline and power.idle_w else ""
    remark = f"Kind of the meter's figures: {', '.join(kinds)}. Net is without what the idle machine takes.{idle}"
    return Section(f"Energy ({where})", _COLUMNS, rows, n_names=2, remark=remark)


def _cells(share: EnergyShare, what: str, engine: str) -> tuple[str, ...]:
    return (
        what,
        engine,
        number(share.watts),
        number(share.net_watts),
        share.unit,
        number(share.gross_j),
        number(share.net_j),
        number(share.tokens_per_j),
        percent(share.uncertainty),
    )


def _entries(record: Record) -> Iterator[tuple[Energy, EnergyShare, str, str]]:
    """Energy, its share, what was measured, and of which engine."""
    for m in by_test(record.measurements):
        share = measurement_share(m)
        if m.energy is not None and share is not None:
            depth = f" at {m.depth}" if m.depth else ""
            threads = f", {m.n_threads} thread{'s' if m.n_threads > 1 else ''}"
            yield m.energy, share, case_name(m.phase, m.n_prompt, m.n_generate) + depth + threads, m.engine
    for level in record.load.levels if record.load else ():
        for one in level_shares(level):
            if level.energy is not None:
                yield level.energy, one, level_name(level), record.load.model if record.load else ""
    for s in record.sustain:
        share = sustain_share(s)
        if s.energy is not None and share is not None:
            yield s.energy, share, f"sustain, {s.n_threads} thread{'s' if s.n_threads > 1 else ''}", s.engine


def _energy_reasons(record: Record) -> Iterator[str]:
    yield from (m.energy_reason for m in record.measurements)
    yield from (level.energy_reason for level in (record.load.levels if record.load else ()))
    yield from (s.energy_reason for s in record.sustain)
