"""An evaluation in tables, for a terminal and a page, and in plots."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelm.runtime.router.costs import Prices, cost_of
from edgelm.runtime.router.evaluate import LENGTH, LEVELS, ORACLE, RANDOM, ROUTER, Estimate, Evaluation, Scope
from edgelm.runtime.router.gains_curve import GainsCurve
from edgelm.runtime.router.report import SERIES, Plot, Section, draw, legend_below, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
_COLOURS = dict(zip((ROUTER, LENGTH, ORACLE, RANDOM), SERIES, strict=True))
_LINES = {ROUTER: "-", LENGTH: "--", ORACLE: "-.", RANDOM: ":"}
_NONE = "–"


def facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Names and values above all tables."""
    overall = evaluation.overall
    thresholds = ", ".join(
        f"{threshold:+.3f} recovers {level:.0%} of the gap" for threshold, level in zip(evaluation.thresholds, LEVELS, strict=True)
    )
    return [
        ("pairs", f"{overall.n_pairs:,} of {overall.n_tasks} tasks"),
        ("right answers", f"all local {overall.weak:.1%}, all cloud {overall.strong:.1%}"),
        ("router", evaluation.how),
        ("intervals", f"95%, from {evaluation.rounds:,} samples of whole tasks (of questions within fewer than 5 tasks)"),
        ("thresholds", f"asking from an expected gain of {thresholds}"),
        ("calibration", f"expected error {evaluation.calibration.ece:.3f} of the router's chance that the local answer is right"),
    ]


def sections(evaluation: Evaluation, prices: Prices | None = None) -> list[Section]:
    """All tables."""
    tables = [_scope(scope) for scope in (evaluation.overall, *evaluation.families)]
    tables.append(_by_share(evaluation))
    if prices is not None:
        tables.append(_costs(evaluation, prices))
    if evaluation.tasks:
        tables.append(_by_task(evaluation))
    return tables


def html(evaluation: Evaluation, prices: Prices | None = None) -> str:
    """The page.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    plots = [
        _curve_plot(evaluation, scope, f"curve-{n}") for n, scope in enumerate((evaluation.overall, *evaluation.families)) if scope.figures
    ]
    plots.append(_calibration_plot(evaluation))
    if any(scope.figures for scope in evaluation.tasks):
        plots.append(_task_plot(evaluation))
    return page("Which questions are worth asking the cloud", facts(evaluation), evaluation.notes, plots, sections(evaluation, prices))


def to_json(evaluation: Evaluation, prices: Prices | None = None) -> str:
    """All figures; null where one is not defined. Curves are given at every hundredth of the calls."""
    shares = np.linspace(0, 1, 101)
    document = {
        "how": evaluation.how,
        "notes": evaluation.notes,
        "rounds": evaluation.rounds,
        "levels": LEVELS,
        "thresholds": evaluation.thresholds,
        "calibration": {"ece": evaluation.calibration.ece, "brier": evaluation.calibration.brier},
        "scopes": [_scope_document(scope) for scope in (evaluation.overall, *evaluation.families)],
        "tasks": [_scope_document(scope) for scope in evaluation.tasks],
        "curves": {
            way.name: [_quality(evaluation, recovered) for recovered in np.interp(shares, *GainsCurve.of(way.scores, gains).points())]
            for gains in (evaluation.columns.gains,)
            for way in evaluation.ways
        },
        "costs": None
        if prices is None
        else {"estimated_with": asdict(prices), "ways": [asdict(cost_of(way, evaluation.columns, prices)) for way in evaluation.ways]},
    }
    return json.dumps(_defined(document), indent=1)


def _scope_document(scope: Scope) -> dict[str, Any]:
    names = ("name", "n_pairs", "n_tasks", "drawn", "weak", "strong")
    ways = [{name: _plain(value) for name, value in vars(figures).items()} for figures in scope.figures]
    return {name: getattr(scope, name) for name in names} | {"ways": ways, "lead": _plain(scope.lead)}


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value._asdict()
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _defined(value: Any) -> Any:
    """The same, with None for nan."""
    if isinstance(value, dict):
        return {name: _defined(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_defined(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _scope(scope: Scope) -> Section:
    title = f"{scope.name}: {scope.n_pairs:,} pairs, right {scope.weak:.1%} local, {scope.strong:.1%} cloud"
    columns = ["way", "APGR", *(f"calls for {level:.0%}" for level in LEVELS), "AUROC", "AURC"]
    rows = [[f.way, _figure(f.apgr), *(_percent(estimate) for estimate in f.cpt), _figure(f.auroc), _figure(f.aurc)] for f in scope.figures]
    remark = (
        f"The router's APGR is {_figure(scope.lead, '+')} above that of the length. Drawn again: {scope.drawn}."
        if scope.figures
        else "The cloud gains too little here for shares of it to mean anything."
    )
    return Section(title, columns, rows, remark)


def _by_share(evaluation: Evaluation) -> Section:
    gains = evaluation.columns.gains
    rows = []
    for way in evaluation.ways:
        curve = GainsCurve.of(way.scores, gains)
        rows.append([way.name, *(f"{_quality(evaluation, curve.at(share)):.1%}" for share in _SHARES)])
    rows.append([RANDOM, *(f"{_quality(evaluation, share):.1%}" for share in _SHARES)])
    remark = "0% is all local, 100% all cloud. The oracle knows who is right, and where the cloud is wrong."
    return Section("Right answers by share of calls to the cloud", ["way", *(f"{share:.0%}" for share in _SHARES)], rows, remark)


def _costs(evaluation: Evaluation, prices: Prices) -> Section:
    costs = [cost_of(way, evaluation.columns, prices) for way in evaluation.ways]
    rows = [[cost.way, *(f"{amount:.3g}" for amount in (*cost.levels, cost.all_cloud))] for cost in costs]
    rows.append([RANDOM, *(f"{share * costs[0].all_cloud:.3g}" for share in (*LEVELS, 1.0))])
    remark = (
        f"An estimate: {prices.million_in:g} for a million tokens read and {prices.million_out:g} written, four characters to a token, "
        f"{prices.n_answer_tokens} tokens to an answer by assumption. All local costs 0."
    )
    return Section("Cost of 1,000 questions", ["way", *(f"for {level:.0%}" for level in LEVELS), "all cloud"], rows, remark)


def _by_task(evaluation: Evaluation) -> Section:
    rows = []
    for scope in evaluation.tasks:
        apgr = {figures.way: figures.apgr for figures in scope.figures}
        cells = [_figure(apgr[way]) for way in (ROUTER, LENGTH)] if apgr else [_NONE, _NONE]
        rows.append([scope.name, f"{scope.n_pairs}", f"{scope.weak:.0%}", f"{scope.strong:.0%}", *cells])
    columns = ("task", "pairs", "local", "cloud", "APGR, router", "APGR, length")
    return Section("Each task", columns, rows, f"{_NONE}: the cloud gains fewer than 10 answers, too few for shares of them.")


def _quality(evaluation: Evaluation, recovered: float) -> float:
    weak, strong = evaluation.overall.weak, evaluation.overall.strong
    return weak + recovered * (strong - weak)


def _figure(estimate: Estimate, sign: str = "") -> str:
    if math.isnan(estimate.value):
        return _NONE
    value = f"{estimate.value:{sign}.3f}"
    return value if math.isnan(estimate.low) else f"{value} ({estimate.low:{sign}.2f} to {estimate.high:{sign}.2f})"


def _percent(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return _NONE
    value = f"{estimate.value:.1%}"
    return value if math.isnan(estimate.low) else f"{value} ({estimate.low:.0%} to {estimate.high:.0%})"


def _curve_plot(evaluation: Evaluation, scope: Scope, name: str) -> Plot:
    gains = evaluation.columns.gains[scope.rows]
    quality = 100 * np.array([scope.weak, scope.strong])

    def paint(axes: Axes) -> None:
        for way in evaluation.ways:
            shares, recovered = GainsCurve.of(way.scores[scope.rows], gains).points()
            axes.plot(
                100 * shares, quality[0] + recovered * (quality[1] - quality[0]), _LINES[way.name], color=_COLOURS[way.name], label=way.name
            )
        axes.plot([0, 100], quality, _LINES[RANDOM], color=_COLOURS[RANDOM], label=RANDOM)
        axes.plot([0, 100], quality, "o", color=_COLOURS[RANDOM], markersize=5)
        axes.annotate("all local", (0, quality[0]), (2, -6), textcoords="offset points", va="top")
        axes.annotate("all cloud", (100, quality[1]), (2, -26), textcoords="offset points", ha="right", va="top")
        axes.set_xlabel("calls to the cloud, %")
        axes.set_ylabel("right answers, %")
        axes.set_xlim(-1.5, 101.5)
        axes.margins(y=0.12)
        legend_below(axes)

    router = scope.figures[0]
    text = (
        f"Above the diagonal a way chooses better than chance. The router's APGR is {_figure(router.apgr)}, by "
        f"{_figure(scope.lead, '+')} above that of the length."
    )
    return Plot(name, f"Right answers by calls, {scope.name}", draw(name, paint), text)


def _calibration_plot(evaluation: Evaluation) -> Plot:
    found = evaluation.calibration
    some = found.n_rows > 0

    def paint(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], ":", color=_COLOURS[RANDOM], label="as predicted")
        sizes = 12 + 150 * found.n_rows[some] / found.n_rows.max()
        axes.plot(100 * found.predicted[some], 100 * found.observed[some], "-", color=_COLOURS[ROUTER])
        axes.scatter(100 * found.predicted[some], 100 * found.observed[some], sizes, color=_COLOURS[ROUTER], label="router")
        axes.set_xlabel("predicted chance that the local answer is right, %")
        axes.set_ylabel("right local answers, %")
        legend_below(axes)

    text = f"Larger points stand for more questions. The expected calibration error is {found.ece:.3f}, the Brier score {found.brier:.3f}."
    return Plot("calibration", "Whether the chances mean what they say", draw("calibration", paint), text)


def _task_plot(evaluation: Evaluation) -> Plot:
    scopes = sorted((scope for scope in evaluation.tasks if scope.figures), key=lambda scope: scope.figures[0].apgr.value)

    def paint(axes: Axes) -> None:
        for offset, way, marker in ((0.15, 0, "o"), (-0.15, 1, "s")):
            figures = [scope.figures[way] for scope in scopes]
            apgr = np.array([f.apgr for f in figures])
            y = np.arange(len(scopes)) + offset
            axes.errorbar(
                apgr[:, 0],
                y,
                xerr=np.maximum([apgr[:, 0] - apgr[:, 1], apgr[:, 2] - apgr[:, 0]], 0),
                fmt=marker,
                color=_COLOURS[figures[0].way],
                markersize=4,
                linewidth=1,
                label=figures[0].way,
            )
        axes.axvline(0.5, linestyle=_LINES[RANDOM], color=_COLOURS[RANDOM], label=RANDOM)
        axes.set_yticks(range(len(scopes)), [scope.name for scope in scopes], fontsize=8)
        axes.set_ylim(-0.7, len(scopes) - 0.3)
        axes.set_xlabel("APGR within the task")
        legend_below(axes)

    text = "Tasks of which the cloud gains 10 answers or more. Within a task a way can only tell its easy questions from its hard ones."
    return Plot("tasks", "Within each task", draw("tasks", paint, 11.2, 1.2 + 0.22 * len(scopes)), text, wide=True)
