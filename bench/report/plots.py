"""The plots of a page, each of all its records; one without data is a sentence that says what is missing and how to get it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelm.bench.energy_figures import measurement_share
from edgelm.bench.figures import Interval, itl_s, median_interval, speeds, ttft_s
from edgelm.bench.record import Measurement, Record
from edgelm.bench.report.energy_sections import why_no_energy
from edgelm.bench.report.figure import draw, legend_below, looks, plain_log, style
from edgelm.bench.report.sections import model_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_STEPS = 400


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        name: unique on a page.
        svg: the drawing, "" where there is no data.
        text: what it shows; without data, what is missing and how to get it.
    """

    name: str
    title: str
    svg: str
    text: str


@dataclass(frozen=True)
class Case:
    """A measurement, and what it is called on a page."""

    record: Record
    measurement: Measurement
    label: str


def run_plots(records: Sequence[Record]) -> tuple[Plot, ...]:
    """The plots of what `edgebench run` measures."""
    cases = [case for case in _cases(records) if case.measurement.trials]
    return (_speed_by_depth(cases), _ttft_by_prompt(cases), _gaps(cases), _speed_by_watts(cases, records), _energy_by_kl(cases))


def errors(intervals: Sequence[Interval]) -> NDArray[np.float64]:
    """Lengths of error bars [2, n], of length 0 where no interval can be told."""
    low = [i.value - i.low if i.low is not None else 0.0 for i in intervals]
    high = [i.high - i.value if i.high is not None else 0.0 for i in intervals]
    return np.maximum(np.array([low, high], np.float64), 0.0)


def missing(name: str, title: str, text: str) -> Plot:
    """A plot that cannot be drawn."""
    return Plot(name, title, "", text)


def record_label(record: Record, records: Sequence[Record]) -> str:
    """What tells a record from the others of a page: nothing if it is alone."""
    if len(records) == 1:
        return ""
    models = [model_name(other) for other in records]
    return f", {model_name(record)}" if models.count(model_name(record)) == 1 else f", {record.id[:6]}"


def _cases(records: Sequence[Record]) -> Iterator[Case]:
    for record in records:
        for m in record.measurements:
            threads = f"{m.n_threads} thread" + ("s" if m.n_threads > 1 else "")
            yield Case(record, m, f"{m.engine}, {threads}{record_label(record, records)}")


def _by_label(cases: Sequence[Case]) -> dict[str, list[Measurement]]:
    series: dict[str, list[Measurement]] = {}
    for case in cases:
        series.setdefault(case.label, []).append(case.measurement)
    return series


def _ranks(cases: Sequence[Case]) -> dict[str, int]:
    """Where each series stands beside the others."""
    return {label: index for index, label in enumerate(dict.fromkeys(case.label for case in cases))}


def _looks(cases: Sequence[Case]) -> dict[str, int]:
    """The number of each series' style."""
    labels = list(_ranks(cases))
    split = [(engine, way) for engine, _, way in (label.partition(", ") for label in labels)]
    return dict(zip(labels, looks(split), strict=True))


def _speed_by_depth(cases: Sequence[Case]) -> Plot:
    name, title = "speed", "Tokens per second by depth"
    phases = [phase for phase in ("decode", "prefill") if any(c.measurement.phase == phase for c in cases)]
    if not phases:
        return missing(name, title, "Nothing was decoded or prefilled to its end; see the notes, and run edgebench run MODEL again.")
    depths = sorted({c.measurement.depth for c in cases})

    def paint(panels: Sequence[Axes]) -> None:
        for axes, phase in zip(panels, phases, strict=True):
            chosen = [c for c in cases if c.measurement.phase == phase and _is_main_prompt(c, cases)]
            for label, found in _by_label(chosen).items():
                ordered = sorted(found, key=lambda m: m.depth)
                intervals = [median_interval(speeds(m)) for m in ordered]
                x = [_shifted(m.depth, label, cases, depths) for m in ordered]
                axes.errorbar(x, [i.value for i in intervals], errors(intervals), label=label, **style(_looks(cases)[label]))
            axes.set_ylabel(f"{phase}, tokens/s")
            axes.set_ylim(bottom=0)
        panels[-1].set_xlabel("tokens held before (depth)")
        panels[-1].set_xticks(depths, [f"{depth:,}" for depth in depths])
        if len(depths) == 1:
            panels[-1].set_xlim(depths[0] - 1, depths[0] + 1)
        legend_below(panels[0])

    only = "" if len(depths) > 1 else " Only one depth was measured: --depth 0,1024 shows how speed falls with the context."
    text = "Medians with 95% intervals; points of one depth are set side by side." + only
    return Plot(name, title, draw(name, paint, len(phases), 2.2), text)


def _is_main_prompt(case: Case, cases: Sequence[Case]) -> bool:
    """Of several prompt lengths the longest is shown by depth; the others are in the plot of times to first token."""
    same = [c.measurement.n_prompt for c in cases if c.measurement.phase == case.measurement.phase]
    return case.measurement.n_prompt == max(same)


def _shifted(depth: int, label: str, cases: Sequence[Case], depths: Sequence[int]) -> float:
    """Series beside each other, so that no error bar hides another."""
    n = len(_ranks(cases))
    step = (max(depths) - min(depths)) * 0.012 or 0.1
    return depth + (_ranks(cases)[label] - (n - 1) / 2) * step


def _ttft_by_prompt(cases: Sequence[Case]) -> Plot:
    name, title = "ttft", "Time to first token by prompt length"
    chosen = [c for c in cases if c.measurement.phase == "prefill" and c.measurement.depth == 0]
    if not chosen:
        return missing(name, title, "No prompt was measured from an empty context; ask for some with --prompt 128,512,2048 --depth 0.")
    prompts = sorted({c.measurement.n_prompt for c in chosen})

    def paint(panels: Sequence[Axes]) -> None:
        axes = panels[0]
        for label, found in _by_label(chosen).items():
            ordered = sorted(found, key=lambda m: m.n_prompt)
            intervals = [median_interval(ttft_s(m)) for m in ordered]
            x = [m.n_prompt * _beside(label, cases) for m in ordered]
            axes.errorbar(x, [i.value for i in intervals], errors(intervals), label=label, **style(_looks(cases)[label]))
        _paint_cold(axes, chosen, cases)
        axes.set_xscale("log")
        axes.set_xticks(prompts, [f"{n:,}" for n in prompts])
        axes.minorticks_off()
        if len(prompts) > 1:
            plain_log(axes, "y")
        else:
            axes.set_xlim(prompts[0] / 1.5, prompts[0] * 1.5)
            axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens of the prompt")
        axes.set_ylabel("seconds")
        legend_below(axes)

    only = "" if len(prompts) > 1 else " Only one length was measured: --prompt 128,512,2048 shows how the time grows."
    text = "Filled: with the model open and warm. Hollow: cold, a new process, its start and the model's opening included." + only
    return Plot(name, title, draw(name, paint), text)


def _beside(label: str, cases: Sequence[Case]) -> float:
    """Factor that sets a series beside the others on a logarithmic axis."""
    ranks = _ranks(cases)
    return float(1.03 ** (ranks[label] - (len(ranks) - 1) / 2))


def _paint_cold(axes: Axes, chosen: Sequence[Case], cases: Sequence[Case]) -> None:
    seen: set[str] = set()
    for case in chosen:
        m = case.measurement
        engine = next((e for e in case.record.engines if (e.engine, e.n_threads) == (m.engine, m.n_threads)), None)
        if engine is None or case.label in seen:
            continue
        seen.add(case.label)
        beside = _beside(case.label, cases)
        points = [(o.n_prompt * beside, o.first_token_s - o.spawned_s) for o in engine.openings if o.first_token_s is not None]
        look = style(_looks(cases)[case.label]) | {"linestyle": "none", "markerfacecolor": "none", "markersize": 7.0, "zorder": 3.0}
        axes.plot([x for x, _ in points], [y for _, y in points], **look)


def _gaps(cases: Sequence[Case]) -> Plot:
    name, title = "gaps", "Time between tokens"
    chosen = [c for c in cases if len(itl_s(c.measurement)) and c.measurement.phase == "decode"]
    depth = min((c.measurement.depth for c in chosen), default=0)
    chosen = [c for c in chosen if c.measurement.depth == depth]
    if not chosen:
        return missing(name, title, "No two tokens followed each other; decode some with --generate 128.")

    def paint(panels: Sequence[Axes]) -> None:
        axes = panels[0]
        for label, found in _by_label(chosen).items():
            gaps = np.sort(np.concatenate([itl_s(m) for m in found])) * 1e3
            share = 1 - np.arange(len(gaps)) / len(gaps)
            picks = np.unique(np.rint(np.geomspace(1, len(gaps), min(len(gaps), _MAX_STEPS)))).astype(int)
            kept = len(gaps) - picks[::-1]  # denser towards the slowest, where a logarithmic axis has room
            look = style(_looks(cases)[label]) | {"marker": ""}
            axes.step(gaps[kept], share[kept], where="post", label=label, **look)
        plain_log(axes, "x")
        axes.set_yscale("log")
        axes.set_yticks([1, 0.5, 0.05, 0.01], ["100%", "50%", "5%", "1%"])
        axes.minorticks_off()
        axes.set_xlabel("milliseconds")
        axes.set_ylabel("share of gaps that are longer")
        legend_below(axes)

    at = f" at depth {depth:,}" if depth else ""
    text = f"How many gaps between the tokens of a decode{at} take longer than so many milliseconds. Steep is steady; a tail is stutter."
    return Plot(name, title, draw(name, paint), text)


def _speed_by_watts(cases: Sequence[Case], records: Sequence[Record]) -> Plot:
    name, title = "watts", "Tokens per second against watts"
    points = [(c, share) for c in cases if c.measurement.phase == "decode" and (share := measurement_share(c.measurement)) is not None]
    if not points:
        return missing(name, title, f"Watts were not measured ({why_no_energy(records[0])}).")

    def paint(panels: Sequence[Axes]) -> None:
        axes = panels[0]
        drawn: set[str] = set()
        for case, share in points:
            interval = median_interval(speeds(case.measurement))
            look = style(_looks(cases)[case.label]) | {"linestyle": "none"}
            across = share.watts * share.uncertainty if share.uncertainty is not None else None
            axes.errorbar(share.watts, interval.value, errors([interval]), across, label="" if case.label in drawn else case.label, **look)
            drawn.add(case.label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("watts, gross")
        axes.set_ylabel("decode, tokens/s")
        legend_below(axes)

    kinds = ", ".join(
        dict.fromkeys(f"{c.measurement.energy.meter} ({c.measurement.energy.kind})" for c, _ in points if c.measurement.energy)
    )
    text = f"Mean power of each decode, one point per depth, by {kinds}. Bars: 95% intervals of speed, and the meter's stated uncertainty."
    return Plot(name, title, draw(name, paint), text)


def _energy_by_kl(cases: Sequence[Case]) -> Plot:
    name, title = "kl", "Joules per token against KL divergence"
    points = []
    for case in cases:
        m = case.measurement
        engine = next((e for e in case.record.engines if (e.engine, e.n_threads) == (m.engine, m.n_threads)), None)
        share = measurement_share(m)
        quality = next((q for q in case.record.quality if engine and (q.engine, q.precision) == (m.engine, engine.precision)), None)
        if m.phase == "decode" and share is not None and quality is not None:
            points.append((case, share, quality))
    if not points:
        lacking = "No quality was measured" if any(measurement_share(c.measurement) for c in cases) else "No energy was measured"
        return missing(name, title, f"{lacking}: this plot needs both, a power meter (edgebench power list) and --quality TEXT.")

    def paint(panels: Sequence[Axes]) -> None:
        axes = panels[0]
        drawn: set[str] = set()
        for case, share, quality in points:
            look = style(_looks(cases)[case.label]) | {"linestyle": "none"}
            up = share.gross_j * share.uncertainty if share.uncertainty is not None else None
            label = "" if case.label in drawn else case.label
            axes.errorbar(quality.mean_kl, share.gross_j, up, quality.se_mean_kl, label=label, **look)
            drawn.add(case.label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("mean KL divergence from the reference, nats")
        axes.set_ylabel("J per generated token, gross")
        legend_below(axes)

    text = "Down and left is better. Bars: one standard error of KL, and the meter's stated uncertainty."
    return Plot(name, title, draw(name, paint), text)
