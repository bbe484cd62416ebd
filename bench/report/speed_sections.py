"""Tables of `edgebench run`: speed, times to and between tokens, cold starts, engines, the machine's limits, quality."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import expm1

import numpy as np

from edgelm.bench.figures import itl_s, median_interval, paired_ratio, speeds, tpot_s, ttft_s
from edgelm.bench.record import EngineRun, Measurement, Opening, Quality, Record
from edgelm.bench.report.section import (
    NAMES,
    NOTHING,
    Section,
    megabytes,
    milliseconds,
    names,
    number,
    percent,
    ratio,
    spread,
)


def speed(record: Record) -> Section:
    """Tokens per second, with the ratio to the first engine of the same test."""
    measured = by_test(record.measurements)
    engines = {m.engine for m in measured}
    first = measured[0].engine if measured else ""
    columns: list[tuple[str, Callable[[Measurement], str]]] = [
        ("tokens/s", lambda m: number(median_interval(speeds(m)).value) if m.trials else NOTHING),
        ("95% interval", lambda m: spread(median_interval(speeds(m))) if m.trials else NOTHING),
        ("trials", lambda m: str(len(m.trials))),
    ]
    if len(engines) > 1:
        columns.append((f"ratio to {first}", lambda m: _ratio_to(first, m, measured)))
    if any(m.limit is not None and m.limit.fraction is not None for m in measured):
        columns.append(("of the limit", _limit))
    return Section(
        "Speed",
        (*NAMES, *(heading for heading, _ in columns)),
        tuple((*names(m), *(cell(m) for _, cell in columns)) for m in measured),
        n_names=4,
        remark=_speed_remark(measured, len(engines) > 1),
    )


def latency(record: Record) -> Section:
    """Time to first token with the model open and warm, time per output token, and the gaps between tokens."""
    rows = []
    for m in by_test(record.measurements):
        if not m.trials:
            continue
        first = ttft_s(m)
        warm = milliseconds(float(np.median(first))) if len(first) else NOTHING
        rows.append((*names(m), warm, milliseconds(tpot_s(m)), *map(milliseconds, gap_quantiles(m))))
    columns = (*NAMES, "TTFT warm ms", "TPOT ms", "ITL p50 ms", "p95 ms", "p99 ms")
    remark = "TTFT: request to first token. TPOT: per output token after the first. ITL: gaps between tokens; p95 needs 20, p99 needs 100."
    return Section("Time to first token, time between tokens", columns, tuple(rows), 4, remark)


def cold_start(record: Record) -> Section:
    """New processes: how long until the first token, and what of; medians of those that found the page cache alike."""
    rows = []
    for engine in record.engines:
        for n_prompt, cache in sorted({(o.n_prompt, page_cache(o)) for o in engine.openings}):
            alike = [o for o in engine.openings if o.n_prompt == n_prompt and page_cache(o) == cache]
            rows.append((str(engine.n_threads), engine.engine, str(n_prompt), cache, str(len(alike)), *_opening_cells(alike)))
    columns = ("threads", "engine", "prompt", "model's files", "starts", "load code ms", "open ms", "first token ms", "TTFT cold ms")
    remark = "From the start of a new process to its first token."
    return Section("Cold start", columns, tuple(rows), n_names=4, remark=remark)


def engines(record: Record) -> Section:
    """What ran, and its peak memory."""
    rows = tuple(
        (
            e.engine + ("" if e.state == "complete" else f" ({e.state})"),
            str(e.n_threads),
            e.version or NOTHING,
            e.precision or NOTHING,
            megabytes(e.weight_bytes),
            megabytes(e.bytes_per_token),
            megabytes(peak_bytes(e)),
        )
        for e in record.engines
    )
    columns = ("engine", "threads", "version", "precision", "weights MB", "read per token MB", "peak memory MB")
    return Section("Engines", columns, rows, n_names=4)


def limits(record: Record) -> Section:
    """What the machine can do at most."""
    rows = tuple(
        (
            str(limit.n_threads),
            limit.instruction,
            number(limit.bytes_per_s / 1e9),
            number(limit.median_bytes_per_s / 1e9),
            number(limit.macs_per_s / 1e9),
            number(limit.median_macs_per_s / 1e9),
        )
        for limit in record.limits
    )
    columns = ("threads", "instruction", "read GB/s", "median", "GMAC/s", "median")
    remark = "Best of the trials, measured beside the engines: reading memory in order, and multiplying int8 by int8."
    return Section("The machine's limits", columns, rows, n_names=2, remark=remark)


def quality(record: Record) -> Section:
    """Predictions of a text beside a reference's."""
    figures = ("perplexity", "change", "mean KL", "median KL", "99% KL", "largest KL", "top token agrees", "KL / first", "gate")
    columns = ("engine", "precision", "window", *figures)
    texts = dict.fromkeys(
        f"Beside {q.reference} over {q.n_tokens:,} tokens of {q.text} in windows of {q.n_window}; KL in nats." for q in record.quality
    )
    remark = " ".join((*texts, "± is one standard error."))
    return Section("Quality", columns, tuple(_quality_cells(q) for q in record.quality), n_names=3, remark=remark)


def by_test(measurements: Iterable[Measurement]) -> list[Measurement]:
    """The same measurements, those of one test side by side, otherwise in their order."""
    groups: dict[tuple[object, ...], list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(test_of(m), []).append(m)
    return [m for group in groups.values() for m in group]


def test_of(m: Measurement) -> tuple[object, ...]:
    """What two engines must have in common to be compared."""
    return m.n_threads, m.phase, m.n_prompt, m.n_generate, m.depth


def gap_quantiles(m: Measurement) -> tuple[float | None, float | None, float | None]:
    """p50, p95 and p99 of the seconds between tokens; None of too few gaps to tell."""
    gaps = itl_s(m)
    p50, p95, p99 = (float(q) for q in np.quantile(gaps, [0.5, 0.95, 0.99])) if len(gaps) else (None, None, None)
    return p50, p95 if len(gaps) >= 20 else None, p99 if len(gaps) >= 100 else None


def page_cache(opening: Opening) -> str:
    """Where the model's files were when the process began, in words."""
    if opening.cached is None:
        return "page cache not known"
    if opening.cached < 0.05:
        return "on disk"
    return "in page cache" if opening.cached > 0.95 else "partly in page cache"


def peak_bytes(engine: EngineRun) -> int | None:
    """The most memory that the engine's process held; of its start, where its end is not known."""
    seen = [opening.peak_rss_bytes for opening in engine.openings if opening.peak_rss_bytes is not None]
    return engine.peak_rss_bytes if engine.peak_rss_bytes is not None else max(seen, default=None)


def _ratio_to(first: str, m: Measurement, measured: Sequence[Measurement]) -> str:
    other = next((o for o in measured if o.engine == first and test_of(o) == test_of(m)), None)
    if m.engine == first or other is None or not (other.trials and m.trials):
        return NOTHING
    return ratio(paired_ratio(speeds(m), speeds(other)))


def _limit(m: Measurement) -> str:
    if m.limit is None or m.limit.fraction is None:
        return NOTHING
    return f"{percent(m.limit.fraction)} ({m.limit.bound_by})"


def _speed_remark(measured: Sequence[Measurement], several: bool) -> str:
    parts = ["Medians of the trials."]
    if several:
        parts.append("Ratios are of the same turns, so that slow drifts of the machine cancel.")
    reasons = {
        m.limit.reason: f"{m.phase} of {m.engine}" for m in measured if m.limit is not None and m.limit.fraction is None and m.limit.reason
    }
    parts += [f"No share of the limit ({where}): {reason}." for reason, where in reasons.items()]
    return " ".join(parts)


def _opening_cells(openings: Sequence[Opening]) -> tuple[str, str, str, str]:
    there = [o for o in openings if o.first_token_s is not None]
    load, opened = (
        float(np.median([o.ready_s - o.spawned_s for o in openings])),
        float(np.median([o.opened_s - o.ready_s for o in openings])),
    )
    if not there:
        return milliseconds(load), milliseconds(opened), "none", "none"
    first = float(np.median([(o.first_token_s or 0.0) - o.opened_s for o in there]))
    whole = float(np.median([(o.first_token_s or 0.0) - o.spawned_s for o in there]))
    return milliseconds(load), milliseconds(opened), milliseconds(first), milliseconds(whole)


def _quality_cells(q: Quality) -> tuple[str, ...]:
    pair = q.beside_first
    return (
        f"{q.model.name} with {q.engine}" if q.model else q.engine,
        q.precision,
        str(q.n_window),
        f"{number(q.perplexity)} ± {number(q.se_perplexity)}",
        f"{expm1(q.log_ratio):+.2%} ± {q.se_log_ratio:.2%}",
        f"{number(q.mean_kl)} ± {number(q.se_mean_kl)}",
        number(q.median_kl),
        number(q.p99_kl),
        number(q.max_kl),
        f"{q.top_agreement:.1%} ± {q.se_top_agreement:.1%}",
        f"{number(pair.kl_ratio)} ± {number(pair.se_kl_ratio)}" if pair and pair.kl_ratio is not None else NOTHING,
        NOTHING if q.gate is None else f"{'kept' if q.passed else 'MISSED'} ({percent(q.gate)})",
    )
