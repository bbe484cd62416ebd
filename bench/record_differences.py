"""What differs between two records besides their figures: model, machine, software, settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgelm.bench.record import Record

_MACHINE = {
    "cpu": "processor",
    "n_cores": "cores",
    "memory_bytes": "memory in bytes",
    "system": "system",
    "python": "Python",
    "governor": "frequency governor",
    "virtual": "virtual machine",
    "on_battery": "on battery",
}
_CLOCK_STEP_S = 0.1


def differences(old: Record, new: Record) -> Iterator[str]:
    """In words, the weightiest first; nothing for records of the same model on the same machine with the same software."""
    yield from _models(old, new)
    for attribute, name in _MACHINE.items():
        yield from _pair(name, getattr(old.machine, attribute), getattr(new.machine, attribute))
    yield from _mappings("version of ", old.machine.versions, new.machine.versions)
    yield from _engines(old, new)
    if old.load is not None and new.load is not None:
        yield from _pair("server's model", old.load.model, new.load.model)
    yield from _mappings("setting ", old.settings, new.settings)
    for which, record in (("first", old), ("second", new)):
        if record.state != "complete":
            yield f"the {which} record is {record.state} ({record.reason or 'no reason is recorded'})"
        if abs(record.clock_step_s) > _CLOCK_STEP_S:
            yield f"the wall clock moved by {record.clock_step_s:.3g} s during the {which} record, or the machine slept"


def _models(old: Record, new: Record) -> Iterator[str]:
    a, b = old.model, new.model
    if a is None or b is None or a.sha256 == b.sha256:
        return
    yield f"MODEL: {a.name} ({a.format}, SHA-256 {a.sha256[:12]}…), then {b.name} ({b.format}, SHA-256 {b.sha256[:12]}…)"


def _engines(old: Record, new: Record) -> Iterator[str]:
    after = {(e.engine, e.n_threads): e for e in new.engines}
    seen: set[str] = set()
    for engine in old.engines:
        other = after.get((engine.engine, engine.n_threads))
        if other is None or engine.engine in seen:
            continue
        seen.add(engine.engine)
        yield from _pair(f"version of engine {engine.engine}", engine.version, other.version)
        yield from _pair(f"precision of engine {engine.engine}", engine.precision, other.precision)


def _mappings(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in dict.fromkeys((*old, *new)):
        yield from _pair(f"{what}{name}", old.get(name), new.get(name))


def _pair(name: str, old: object, new: object) -> Iterator[str]:
    if old != new:
        yield f"{name}: {_shown(old)}, then {_shown(new)}"


def _shown(value: object) -> str:
    return "not known" if value is None else str(value) if value != "" else "none"
