"""A calibration as one HTML page: what was found, in tables and in plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgelm.runtime.router.calibrate import Apart, Evaluation, Fitted, accuracy_by_kind
from edgelm.runtime.router.metrics import risk_coverage
from edgelm.runtime.router.report import INK, SERIES, Plot, Section, draw, legend_below, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

APART: dict[Apart, str] = {"kinds": "kinds of questions left out whole", "questions": "other questions of the same kinds"}
_EVERY = 400  # points of a curve at most


def html_page(fitted: Fitted) -> str:
    """The page.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    first = fitted.evaluations[0]
    plots = [_reliability(first), _risk(first), _histogram(fitted)]
    return page(f"Confidence of {fitted.calibration.model}", _facts(fitted), (), plots, [_figures(fitted), _kinds(first)])


def _facts(fitted: Fitted) -> list[tuple[str, str]]:
    calibration, first = fitted.calibration, fitted.evaluations[0]
    origin = calibration.origin
    cloud = "" if origin.cloud_accuracy is None else f", with a cloud that is right {origin.cloud_accuracy:g} of the time"
    return [
        ("model", f"{calibration.model}, SHA-256 {calibration.model_sha256}"),
        ("answers", f"{origin.n_answers} to {origin.n_questions} questions of {origin.n_kinds} kinds, {first.table.n_unknown} not usable"),
        ("sampling", ", ".join(f"{name} {value}" for name, value in origin.sampling.items() if value is not None)),
        ("target", f"{origin.target}{cloud}"),
        ("threshold", f"{calibration.threshold:.3f}; between {calibration.low:.3f} and {calibration.high:.3f} more thought may help"),
        ("plots", f"of answers that the regression was not fitted to: {APART[first.apart]}"),
        ("made", f"{origin.made_at}, edgelm {origin.edgelm}"),
    ]


def _figures(fitted: Fitted) -> Section:
    found = fitted.evaluations
    rows = [[name, *(f"{each.figures[name]:.4g}" for each in found)] for name in found[0].figures]
    return Section("Figures", ["held out", *(APART[each.apart] for each in found)], rows)


def _kinds(evaluation: Evaluation) -> Section:
    rows = [[kind, f"{n}", f"{share:.0%}"] for kind, (n, share) in accuracy_by_kind(evaluation.table).items()]
    return Section("Kinds of questions", ["kind", "answers", "right"], rows)


def _reliability(evaluation: Evaluation) -> Plot:
    found = evaluation.reliability

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        axes.plot(found.predicted, found.observed, color=SERIES[0], marker="o")
        for x, y, n in zip(found.predicted, found.observed, found.n_rows, strict=True):
            if n:
                axes.annotate(str(n), (x, y), textcoords="offset points", xytext=(6, -10), fontsize=8)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share that is right")

    text = "How often answers of a confidence are right. On the diagonal it means what it says."
    return Plot("reliability", "Reliability", draw("reliability", paint), text)


def _risk(evaluation: Evaluation) -> Plot:
    wrong = ~evaluation.table.right

    def paint(axes: Axes) -> None:
        for label, scores, colour in (
            ("confidence", evaluation.confidence, SERIES[0]),
            ("mean log probability", evaluation.mean_logprob, SERIES[1]),
        ):
            coverage, risk = risk_coverage(scores, wrong)
            kept = np.unique(np.linspace(0, len(risk) - 1, _EVERY).astype(int))
            axes.plot(coverage[kept], risk[kept], label=label, color=colour, linestyle="-" if colour == SERIES[0] else "--")
        axes.axhline(wrong.mean(), color=INK, linewidth=0.8, linestyle=":", label="all of them")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="share of answers kept (coverage)", ylabel="share of them that is wrong")
        legend_below(axes)

    text = "Share of wrong answers among the surest ones; lower is better."
    return Plot("risk", "Risk and coverage", draw("risk", paint), text)


def _histogram(fitted: Fitted) -> Plot:
    first, calibration = fitted.evaluations[0], fitted.calibration
    right = first.table.right

    def paint(axes: Axes) -> None:
        bins = np.linspace(0, 1, 31).tolist()
        axes.hist(first.confidence[right], bins, histtype="step", color=SERIES[0], label="right", linewidth=1.6)
        axes.hist(first.confidence[~right], bins, histtype="step", color=SERIES[1], label="wrong", linewidth=1.6, linestyle="--")
        for place, line in ((calibration.low, ":"), (calibration.threshold, "--"), (calibration.high, ":")):
            axes.axvline(place, color=INK, linewidth=0.8, linestyle=line)
        axes.set(xlim=(0, 1), xlabel="confidence", ylabel="answers")
        legend_below(axes)

    text = "Dashed: the threshold; dotted: low and high."
    return Plot("histogram", "Confidence of right and wrong answers", draw("histogram", paint), text)
