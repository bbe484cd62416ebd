"""All that a report says of a record, in order."""

from __future__ import annotations

from edgelm.bench.record import Record
from edgelm.bench.report import energy_sections, load_sections, speed_sections
from edgelm.bench.report.section import Section, megabytes, number


def sections(record: Record) -> tuple[Section, ...]:
    """The record's tables without the empty ones, and what is to be said of power."""
    tables = (
        speed_sections.speed(record),
        speed_sections.latency(record),
        speed_sections.cold_start(record),
        load_sections.levels(record),
        load_sections.latencies(record),
        load_sections.sustained(record),
        *energy_sections.energy(record),
        speed_sections.quality(record),
        speed_sections.engines(record),
        speed_sections.limits(record),
    )
    return tuple(table for table in tables if table.rows or not table.columns)


def heading(record: Record) -> str:
    """What was measured on what."""
    return f"{model_name(record)} on {record.machine.cpu}"


def model_name(record: Record) -> str:
    """What was measured, in a word."""
    return record.model.name if record.model else (record.load.model if record.load else record.kind)


def facts(record: Record) -> tuple[tuple[str, str], ...]:
    """What was measured, on which machine, when: names and values."""
    machine, model = record.machine, record.model
    found = [("record", f"{record.id}, {record.state}, edgebench {record.kind}"), ("started", record.started)]
    if model is not None:
        weights = f", {number(model.n_weights / 1e6)} million weights" if model.n_weights else ""
        random = ", random weights" if model.is_random else ""
        found.append(("model", f"{model.name}, {model.format or 'format not known'}, {megabytes(model.n_bytes)} MB{weights}{random}"))
        found.append(("SHA-256", model.sha256))
    if record.load is not None:
        found.append(("server", f"{record.load.url}, model {record.load.model}"))
    cores = "1 core" if machine.n_cores == 1 else f"{machine.n_cores} cores"
    memory = f", {number(machine.memory_bytes / 1e9)} GB of memory" if machine.memory_bytes else ""
    found.append(("machine", f"{machine.cpu}, {cores}{memory}"))
    virtual = {None: "not known", "": "no"}.get(machine.virtual, machine.virtual)
    found.append(("virtual machine", str(virtual)))
    found.append(("frequency governor", machine.governor or "not told by the system"))
    found.append(("system", f"{machine.system}, Python {machine.python}"))
    found.append(("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())))
    return tuple(found)
