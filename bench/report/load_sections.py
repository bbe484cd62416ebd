"""Tables of `edgebench load` and `edgebench sustain`."""

from __future__ import annotations

from collections import Counter

from edgelm.bench.load.goodput import Quantiles, level_figures
from edgelm.bench.record import Load, LoadLevel, Record, Sustain
from edgelm.bench.report.energy_sections import level_name
from edgelm.bench.report.section import NOTHING, Section, milliseconds, number


def levels(record: Record) -> Section:
    """One row per level of load."""
    load = record.load
    columns = (
        "load",
        "answered",
        "errors",
        "tokens/s",
        "requests/s",
        "TTFT p50 ms",
        "p95 ms",
        "p99 ms",
        "TPOT p50 ms",
        "p95 ms",
        "goodput/s",
    )
    rows = tuple(_level_cells(load, level) for level in load.levels) if load is not None else ()
    return Section("Load", columns, rows, remark=_remark(load) if load is not None else "")


def sustained(record: Record) -> Section:
    """Whether the speed held."""
    columns = ("engine", "threads", "minutes", "first minute tokens/s", "steady tokens/s", "steady / first", "verdict")
    return Section("Sustained speed", columns, tuple(_sustain_cells(s) for s in record.sustain), n_names=2)


def _level_cells(load: Load, level: LoadLevel) -> tuple[str, ...]:
    f = level_figures(level, load)
    return (
        level_name(level) + ("" if level.state == "complete" else f" ({level.state})"),
        str(f.n_whole),
        str(f.n_requests - f.n_whole),
        number(f.tokens_per_s),
        number(f.requests_per_s),
        *_latencies(f.ttft),
        *_latencies(f.tpot)[:2],
        number(f.good_per_s),
    )


def _latencies(q: Quantiles | None) -> tuple[str, str, str]:
    """p50, p95 and p99 in ms."""
    return (milliseconds(q.p50), milliseconds(q.p95), milliseconds(q.p99)) if q else (NOTHING, NOTHING, NOTHING)


def _remark(load: Load) -> str:
    targets = [f"TTFT of {number(load.ttft_target_s)} s"] if load.ttft_target_s is not None else []
    targets += [f"TPOT of {milliseconds(load.tpot_target_s)} ms"] if load.tpot_target_s is not None else []
    goodput = f"Goodput: whole answers per second that kept a {' and a '.join(targets)}. " if targets else ""
    errors = Counter(r.error for level in load.levels for r in level.requests if r.error)
    failed = " Errors: " + ", ".join(f"{error} ({n})" for error, n in errors.most_common()) + "." if errors else ""
    counted = all(r.counted for level in load.levels for r in level.requests if not r.error)
    pieces = "" if counted else " The server does not count tokens: pieces of text were counted instead."
    return f"{goodput}Times are from when a request was due; p95 needs 20 answers, p99 needs 100.{pieces}{failed}"


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
        f"{verdict}: {s.reason}" if s.reason else verdict,
    )
