"""Plots of one record: the roofline, a long run's trace, and levels of load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelm.bench.figures import Interval, median_interval, speeds
from edgelm.bench.load.goodput import Quantiles, level_figures
from edgelm.bench.record import Load, Measurement, Record, Sustain
from edgelm.bench.report.energy_sections import level_name
from edgelm.bench.report.figure import INK, draw, legend_below, looks, plain_log, style
from edgelm.bench.report.plots import Plot, errors, missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BIN_S = 5.0
_MAX_POINTS = 600


def roofline(record: Record, name: str) -> Plot:
    """Measured points below what memory and arithmetic allow at most, logarithmic."""
    title = "Roofline"
    if not record.limits:
        return missing(
            name, title, "The machine's limits were not measured; edgebench run MODEL measures them unless --no-roofline is given."
        )
    points = [m for m in record.measurements if m.limit is not None and m.limit.fraction is not None and m.trials and m.phase != "both"]
    if not points:
        reasons = {m.limit.reason for m in record.measurements if m.limit is not None and m.limit.reason}
        return missing(name, title, f"No measurement has a share of the limit ({'; '.join(sorted(reasons)) or 'no reason is recorded'}).")

    def paint(panels: Sequence[Axes]) -> None:
        axes = panels[0]
        across = [_intensity(m) for m in points] + [limit.macs_per_s / limit.bytes_per_s for limit in record.limits]
        x = np.geomspace(min(across) / 3, max(across) * 3, 200)
        for index, limit in enumerate(record.limits):
            roof = np.minimum(limit.bytes_per_s * x, limit.macs_per_s) / 1e9
            axes.plot(x, roof, label=f"limit, {_threads(limit.n_threads)}", color=INK, linestyle=("-", "--", ":")[index % 3], linewidth=1.4)
        _paint_points(axes, points, list(dict.fromkeys((m.engine, m.n_threads) for m in record.measurements if m.trials)))
        plain_log(axes, "x")
        plain_log(axes, "y")
        axes.set_xlabel("multiplications per byte read")
        axes.set_ylabel("GMAC/s")
        legend_below(axes)

    text = (
        "The slope is what memory can deliver, the flat part what the processor can multiply, both measured here. "
        "Points are medians with 95% intervals; filled is decode, hollow is prefill."
    )
    return Plot(name, title, draw(name, paint), text)


def sustain_trace(record: Record, sustain: Sustain, name: str) -> Plot:
    """Speed, clock, temperature and watts on one time axis."""
    title = f"Sustained speed of {sustain.engine}, {_threads(sustain.n_threads)}"
    curves = [curve for curve in (_speed(sustain), _clock(sustain), _temperature(sustain), _watts(record, sustain)) if curve is not None]
    if not curves:
        return missing(name, title, "No token was generated; run edgebench sustain MODEL again.")

    def paint(panels: Sequence[Axes]) -> None:
        for index, (axes, curve) in enumerate(zip(panels, curves, strict=True)):
            axes.plot(curve.times_s / 60, curve.values, color=style(index)["color"])
            axes.set_ylabel(curve.label)
            low, high = float(curve.values.min()), float(curve.values.max())
            room = (high - low) * 0.1 or abs(high) * 0.05 or 1.0
            axes.set_ylim(0 if curve.from_zero else low - room, high + room)
            if curve.label.startswith("tokens") and sustain.first_minute is not None:
                axes.axhline(sustain.first_minute, color=style(5)["color"], linestyle="--", linewidth=1)
        panels[-1].set_xlabel("minutes since the start")

    absent = [what for what, there in _present(curves).items() if not there]
    lacking = f" Not known here: {', '.join(absent)}." if absent else ""
    verdict = {True: "THROTTLED. ", False: "", None: ""}[sustain.throttled]
    text = f"{verdict}Means of a few seconds; the dashed line is the first minute's speed.{lacking}"
    return Plot(name, title, draw(name, paint, len(curves), 1.5), text)


def load_levels(load: Load, name: str) -> Plot:
    """Throughput, and time to first token, by level of load."""
    title = "Load"
    levels = [(level, level_figures(level, load)) for level in load.levels]
    found = [(level, f) for level, f in levels if f.tokens_per_s is not None and f.ttft is not None]
    if not found:
        return missing(name, title, "No request was answered; see the errors in the table.")
    places = np.arange(len(found))

    def paint(panels: Sequence[Axes]) -> None:
        speed, wait = panels
        speed.plot(places, [f.tokens_per_s or 0.0 for _, f in found], label="tokens per second, all requests together", **style(0))
        speed.set_ylabel("tokens/s")
        speed.set_ylim(bottom=0)
        for index, (label, values) in enumerate(_latencies([f.ttft for _, f in found if f.ttft is not None]), 1):
            wait.plot(places, values, label=label, **style(index))
        if load.ttft_target_s is not None:
            wait.axhline(load.ttft_target_s, color=style(4)["color"], linestyle="--", linewidth=1, label="TTFT target")
        wait.set_ylabel("TTFT, s")
        wait.set_ylim(bottom=0)
        wait.set_xticks(places, [level_name(level) for level, _ in found])
        legend_below(wait)

    return Plot(name, title, draw(name, paint, 2, 2.0), "Answered requests only; a percentile that too few answers can tell is left out.")


@dataclass(frozen=True)
class _Curve:
    label: str
    times_s: NDArray[np.float64]
    values: NDArray[np.float64]
    from_zero: bool = False


def _intensity(m: Measurement) -> float:
    return m.limit.macs_per_token / m.limit.bytes_per_token if m.limit is not None else 0.0


def _paint_points(axes: Axes, points: Sequence[Measurement], series: Sequence[tuple[str, int]]) -> None:
    labelled: set[tuple[str, int]] = set()
    for m in points:
        if m.limit is None:
            continue
        key = (m.engine, m.n_threads)
        look = (
            style(looks([(engine, str(n)) for engine, n in series])[series.index(key)])
            | {"linestyle": "none"}
            | ({"markerfacecolor": "none"} if m.phase == "prefill" else {})
        )
        interval = median_interval(speeds(m))
        scale = m.limit.macs_per_token / 1e9
        scaled = Interval(interval.value * scale, *(None if end is None else end * scale for end in (interval.low, interval.high)))
        label = "" if key in labelled else f"{m.engine}, {_threads(m.n_threads)}"
        axes.errorbar(_intensity(m), scaled.value, errors([scaled]), label=label, **look)
        labelled.add(key)


def _threads(n: int) -> str:
    return f"{n} thread" if n == 1 else f"{n} threads"


def _present(curves: Sequence[_Curve]) -> dict[str, bool]:
    labels = [curve.label for curve in curves]
    return {"clock": "MHz" in labels, "temperature": "°C" in labels, "watts": "W" in labels}


def _speed(sustain: Sustain) -> _Curve | None:
    if len(sustain.stamps_s) < 2:
        return None
    if sustain.rounds:
        stamps = np.array(sustain.stamps_s)
        means = [np.count_nonzero((stamps > r.start_s) & (stamps <= r.end_s)) / (r.end_s - r.start_s) for r in sustain.rounds]
        return _thinned("tokens/s", np.array([(r.start_s + r.end_s) / 2 for r in sustain.rounds]), np.array(means), from_zero=True)
    begin, end = sustain.stamps_s[0], sustain.stamps_s[-1]
    n_bins = max(1, int((end - begin) / _BIN_S))
    counts, edges = np.histogram(sustain.stamps_s[1:], np.linspace(begin, end, n_bins + 1))
    return _Curve("tokens/s", (edges[:-1] + edges[1:]) / 2, counts / np.diff(edges), from_zero=True)


def _clock(sustain: Sustain) -> _Curve | None:
    return _condition(sustain, "MHz", lambda c: c.mhz)


def _temperature(sustain: Sustain) -> _Curve | None:
    return _condition(sustain, "°C", lambda c: c.celsius)


def _condition(sustain: Sustain, label: str, read: Callable[..., float | None]) -> _Curve | None:
    known = [(c.time_s, value) for c in sustain.conditions if (value := read(c)) is not None]
    return _thinned(label, np.array([t for t, _ in known]), np.array([v for _, v in known])) if known else None


def _watts(record: Record, sustain: Sustain) -> _Curve | None:
    trace = next((t for t in record.power.traces if t.meter.name == record.power.headline), None)
    if trace is None or trace.problem or len(trace.times_s) < 3:
        return None
    times, values = np.array(trace.times_s), np.array(trace.values)
    inside = (times >= sustain.span.start_s) & (times <= sustain.span.end_s)
    times, values = times[inside], values[inside]
    if len(times) < 3:
        return None
    if trace.meter.quantity == "power":
        return _thinned("W", times, values, from_zero=True)
    edges = np.linspace(times[0], times[-1], max(2, int((times[-1] - times[0]) / _BIN_S) + 1))
    joules = np.interp(edges, times, values)
    return _Curve("W", (edges[:-1] + edges[1:]) / 2, np.diff(joules) / np.diff(edges), from_zero=True)


def _thinned(label: str, times: NDArray[np.float64], values: NDArray[np.float64], from_zero: bool = False) -> _Curve:
    """At most _MAX_POINTS means of neighbours."""
    groups = np.array_split(np.arange(len(times)), min(len(times), _MAX_POINTS))
    means = np.array([[times[g].mean(), values[g].mean()] for g in groups])
    return _Curve(label, means[:, 0], means[:, 1], from_zero)


def _latencies(ttft: Sequence[Quantiles]) -> list[tuple[str, list[float]]]:
    found: dict[str, list[float | None]] = {"p50": [q.p50 for q in ttft], "p95": [q.p95 for q in ttft], "p99": [q.p99 for q in ttft]}
    return [(f"TTFT {name}", [v if v is not None else float("nan") for v in values]) for name, values in found.items() if any(values)]
