"""A record as CSV: one row per measurement, units in the columns' names. What is not known is an empty cell."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping

import numpy as np

from edgelm.bench.energy_figures import EnergyShare, level_shares, measurement_share, sustain_share
from edgelm.bench.figures import median_interval, speeds, tpot_s, ttft_s
from edgelm.bench.load.goodput import level_figures
from edgelm.bench.record import Energy, EngineRun, Load, LoadLevel, Measurement, Quality, Record, Sustain
from edgelm.bench.report.speed_sections import gap_quantiles, peak_bytes

Row = Mapping[str, object]

COLUMNS = (
    *("record", "started", "kind", "model", "model_sha256", "cpu", "virtual", "governor"),
    *(
        "engine",
        "version",
        "precision",
        "threads",
        "phase",
        "prompt_tokens",
        "generated_tokens",
        "depth_tokens",
        "concurrency",
        "rate_per_s",
    ),
    *("state", "reason", "trials", "requests", "errors", "tokens_per_s", "tokens_per_s_low", "tokens_per_s_high"),
    *("ttft_warm_s", "ttft_cold_s", "cold_cached_fraction", "tpot_s", "itl_p50_s", "itl_p95_s", "itl_p99_s", "goodput_per_s"),
    *("limit_fraction", "limit_bound_by", "limit_tokens_per_s"),
    *("meter", "meter_kind", "energy_s", "watts", "net_watts", "energy_unit", "energy_per_unit_j", "net_energy_per_unit_j", "tokens_per_j"),
    *("energy_uncertainty", "energy_reason", "peak_memory_bytes", "perplexity", "mean_kl_nats", "top_agreement"),
)


def csv_text(record: Record) -> str:
    """The rows under COLUMNS; texts that a spreadsheet would take for a formula begin with an apostrophe."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    same = _common(record)
    for row in (*_measurements(record), *_levels(record), *_sustained(record)):
        writer.writerow({name: _cell(value) for name, value in {**same, **row}.items()})
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return "" if value is None else value


def _common(record: Record) -> Row:
    model, machine = record.model, record.machine
    return {
        "record": record.id,
        "started": record.started,
        "kind": record.kind,
        "model": model.name if model else (record.load.model if record.load else None),
        "model_sha256": model.sha256 if model else None,
        "cpu": machine.cpu,
        "virtual": {None: None, "": "no"}.get(machine.virtual, machine.virtual),
        "governor": machine.governor,
    }


def _measurements(record: Record) -> Iterator[Row]:
    engines = {(e.engine, e.n_threads): e for e in record.engines}
    for m in record.measurements:
        engine = engines.get((m.engine, m.n_threads))
        quality = next((q for q in record.quality if engine and (q.engine, q.precision) == (m.engine, engine.precision)), None)
        yield {
            "engine": m.engine,
            "threads": m.n_threads,
            "phase": m.phase,
            "prompt_tokens": m.n_prompt,
            "generated_tokens": m.n_generate,
            "depth_tokens": m.depth,
            "state": m.state,
            "reason": m.reason or (record.reason if m.state != "complete" else ""),
            "trials": len(m.trials),
            **_speed(m),
            **_engine(engine, m),
            **_limit(m),
            **_energy(m.energy, measurement_share(m), m.energy_reason),
            **_quality(quality),
        }


def _speed(m: Measurement) -> Row:
    if not m.trials:
        return {}
    interval, first = median_interval(speeds(m)), ttft_s(m)
    p50, p95, p99 = gap_quantiles(m)
    return {
        "tokens_per_s": interval.value,
        "tokens_per_s_low": interval.low,
        "tokens_per_s_high": interval.high,
        "ttft_warm_s": float(np.median(first)) if len(first) else None,
        "tpot_s": tpot_s(m),
        "itl_p50_s": p50,
        "itl_p95_s": p95,
        "itl_p99_s": p99,
    }


def _engine(engine: EngineRun | None, m: Measurement) -> Row:
    if engine is None:
        return {}
    # A cold start is one prompt from an empty context: it belongs to the measurement of the same. The coldest stand for all.
    alike = [o for o in engine.openings if o.n_prompt == m.n_prompt and m.depth == 0 and m.phase != "decode"]
    coldest = min((o.cached for o in alike if o.cached is not None), default=None)
    chosen = [o for o in alike if coldest is None or (o.cached is not None and o.cached < coldest + 0.05)]
    cold = [o.first_token_s - o.spawned_s for o in chosen if o.first_token_s is not None]
    return {
        "version": engine.version,
        "precision": engine.precision,
        "peak_memory_bytes": peak_bytes(engine),
        "ttft_cold_s": float(np.median(cold)) if cold else None,
        "cold_cached_fraction": coldest if cold else None,
    }


def _limit(m: Measurement) -> Row:
    if m.limit is None:
        return {}
    return {
        "limit_fraction": m.limit.fraction,
        "limit_bound_by": m.limit.bound_by,
        "limit_tokens_per_s": m.limit.limit_tokens_per_s,
    }


def _energy(energy: Energy | None, share: EnergyShare | None, reason: str) -> Row:
    if energy is None or share is None:
        return {"energy_reason": reason}
    return {
        "meter": energy.meter,
        "meter_kind": energy.kind,
        "energy_s": energy.seconds,
        "watts": share.watts,
        "net_watts": share.net_watts,
        "energy_unit": share.unit,
        "energy_per_unit_j": share.gross_j,
        "net_energy_per_unit_j": share.net_j,
        "tokens_per_j": share.tokens_per_j,
        "energy_uncertainty": share.uncertainty,
    }


def _quality(quality: Quality | None) -> Row:
    if quality is None:
        return {}
    return {"perplexity": quality.perplexity, "mean_kl_nats": quality.mean_kl, "top_agreement": quality.top_agreement}


def _levels(record: Record) -> Iterator[Row]:
    for level in record.load.levels if record.load else ():
        if record.load is not None:
            yield _level(record.load, level)


def _level(load: Load, level: LoadLevel) -> Row:
    shares = [share for share in level_shares(level) if share.unit != "request"]
    return {
        "prompt_tokens": load.n_prompt,
        "generated_tokens": load.n_generate,
        "concurrency": level.concurrency,
        "rate_per_s": level.rate,
        "state": level.state,
        "reason": level.reason,
        **_load_figures(load, level),
        **_energy(level.energy, shares[0] if shares else None, level.energy_reason),
    }


def _load_figures(load: Load, level: LoadLevel) -> Row:
    f = level_figures(level, load)
    return {
        "requests": f.n_requests,
        "errors": f.n_requests - f.n_whole,
        "tokens_per_s": f.tokens_per_s,
        "ttft_warm_s": f.ttft.p50 if f.ttft else None,
        "tpot_s": f.tpot.p50 if f.tpot else None,
        "itl_p50_s": f.itl.p50 if f.itl else None,
        "itl_p95_s": f.itl.p95 if f.itl else None,
        "itl_p99_s": f.itl.p99 if f.itl else None,
        "goodput_per_s": f.good_per_s,
    }


def _sustained(record: Record) -> Iterator[Row]:
    for s in record.sustain:
        yield _sustain(s)


def _sustain(s: Sustain) -> Row:
    return {
        "engine": s.engine,
        "threads": s.n_threads,
        "phase": "decode",
        "generated_tokens": len(s.stamps_s),
        "reason": s.reason,
        "tokens_per_s": s.steady,
        **_energy(s.energy, sustain_share(s), s.energy_reason),
    }
