"""Tables of `edgebench load` and `edgebench sustain`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from edgelm.bench.load.goodput import level_figures
from edgelm.bench.record import Load, LoadLevel, Record, Sustain
from edgelm.bench.report.energy_sections import level_name
from edgelm.bench.report.section import NOTHING, Section, milliseconds, number, percent


def levels(record: Record) -> Section:
    """How much was answered: one row per level of load."""
    load = record.load
    columns = ("load", "answered", "errors", "tokens/s", "requests/s", "good/s", "good")
    rows = tuple(_level_cells(load, level) for level in load.levels) if load is not None else ()
    return Section("Load", columns, rows, remark=_remark(load) if load is not None else "")


def latencies(record: Record) -> Section:
    """How fast: one row per level of load and kind of latency."""
    load = record.load
    rows = tuple(row for level in load.levels for row in _latency_rows(load, level)) if load is not None else ()
    remark = "Times are from when a request was due, of whole answers alone; p95 needs 20 samples, p99 needs 100."
    return Section("Latency under load", ("load", "milliseconds", "p50", "p95", "p99"), rows, n_names=2, remark=remark)


def sustained(record: Record) -> Section:
    """Whether the speed held."""
    columns = ("engine", "threads", "minutes", "first minute tokens/s", "steady tokens/s", "steady / first", "verdict")
    remark = " ".join(f"{s.engine}: {s.reason}." for s in record.sustain if s.reason)
    return Section("Sustained speed", columns, tuple(_sustain_cells(s) for s in record.sustain), n_names=2, remark=remark)


def _level_cells(load: Load, level: LoadLevel) -> tuple[str, ...]:
    f = level_figures(level, load)
    return (
        level_name(level) + ("" if level.state == "complete" else f" ({level.state})"),
        str(f.n_whole),
        str(f.n_requests - f.n_whole),
        number(f.tokens_per_s),
        number(f.requests_per_s),
        number(f.good_per_s),
        percent(f.good_share),
    )


def _latency_rows(load: Load, level: LoadLevel) -> Iterator[tuple[str, ...]]:
    f = level_figures(level, load)
    named = {"to first token": f.ttft, "per token after it": f.tpot, "between pieces": f.itl, "whole answer": f.end_to_end}
    for name, q in named.items():
        if q is not None:
            yield level_name(level), name, milliseconds(q.p50), milliseconds(q.p95), milliseconds(q.p99)


def _remark(load: Load) -> str:
    targets = [f"TTFT of {number(load.ttft_target_s)} s"] if load.ttft_target_s is not None else []
    targets += [f"TPOT of {milliseconds(load.tpot_target_s)} ms"] if load.tpot_target_s is not None else []
    goodput = f"Good: whole answers that kept a {' and a '.join(targets)}." if targets else ""
    errors = Counter(r.error for level in load.levels for r in level.requests if r.error)
    failed = " Errors: " + ", ".join(f"{error} ({n})" for error, n in errors.most_common()) + "." if errors else ""
    counted = all(r.counted for level in load.levels for r in level.requests if not r.error)
    pieces = "" if counted else " The server does not count tokens: pieces of text were counted instead."
    return f"{goodput}{pieces}{failed}".strip()


def _sustain_cells(s: Sustain) -> tuple[str, ...]:
    interval = f" ({s.ratio_interval[0]:.3f} to {s.ratio_interval[1]:.3f})" if s.ratio_interval else ""
    held = f"{s.steady / s.first_minute:.3f}{interval}" if s.steady is not None and s.first_minute else NOTHING
    verdict = {True: "THROTTLED", False: "holds", None: "cannot be said"}[s.throttled]
    minutes = number((s.span.end_s - s.span.start_s) / 60)
    return (
        s.engine,
        str(s.n_threads),
        minutes,
        number(s.first_minute),
        number(s.steady),
        held,
        verdict,
    )
