"""A calibration as one HTML page that needs nothing else: no script, no font, no address."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from edgelm.errors import MissingPackageError
from edgelm.runtime.router.calibrate import Apart, Evaluation, Fitted, accuracy_by_kind
from edgelm.runtime.router.calibrate_page import TEMPLATE
from edgelm.runtime.router.metrics import risk_coverage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

APART: dict[Apart, str] = {"kinds": "kinds of questions left out whole", "questions": "other questions of the same kinds"}
_INK, _GRID, _SERIES = "#010203", "#040506", ("#0a0b00", "#0a0b01", "#0a0b02")
_VARIABLES = {_INK: "--ink", _GRID: "--grid"} | {colour: f"--series-{n}" for n, colour in enumerate(_SERIES, 1)}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "legend.frameon": False,
    "text.parse_math": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
}
_EVERY = 400  # points of a curve at most


def check_plots() -> None:
    """Before the work that would be vain without them.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(f"the report needs matplotlib, which is not installed ({error}); pip install 'edgelm[route]'") from error


def html_page(fitted: Fitted) -> str:
    """The page.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    check_plots()
    calibration, first = fitted.calibration, fitted.evaluations[0]
    origin = calibration.origin
    facts = {
        "Model": f"{calibration.model}, SHA-256 {calibration.model_sha256}",
        "Answers": f"{origin.n_answers} to {origin.n_questions} questions of {origin.n_kinds} kinds, {first.table.n_unknown} not usable",
        "Sampling": ", ".join(f"{name} {value}" for name, value in origin.sampling.items() if value is not None),
        "Target": origin.target
        + ("" if origin.cloud_accuracy is None else f", with a cloud that is right {origin.cloud_accuracy:g} of the time"),
        "Threshold": f"{calibration.threshold:.3f}; between {calibration.low:.3f} and {calibration.high:.3f} more thought may help",
        "Made": f"{origin.made_at}, edgelm {origin.edgelm}",
    }
    names = list(first.figures)
    return (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        .from_string(TEMPLATE)
        .render(
            title=f"Confidence of {calibration.model}",
            facts=facts,
            apart=[APART[each.apart] for each in fitted.evaluations],
            figures=[(name, [f"{each.figures[name]:.4g}" for each in fitted.evaluations]) for name in names],
            kinds=[(kind, n, f"{share:.0%}") for kind, (n, share) in accuracy_by_kind(first.table).items()],
            plots=[
                ("Reliability", "How often answers of a confidence are right. On the diagonal it means what it says.", _reliability(first)),
                ("Risk and coverage", "Share of wrong answers among the surest ones; lower is better.", _risk(first)),
                ("Confidence of right and wrong answers", "Dashed: the threshold; dotted: low and high.", _histogram(fitted)),
            ],
            judged=APART[first.apart],
        )
    )


def _reliability(evaluation: Evaluation) -> str:
    found = evaluation.reliability

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":")
        axes.plot(found.predicted, found.observed, color=_SERIES[0], marker="o")
        for x, y, n in zip(found.predicted, found.observed, found.n_rows, strict=True):
            if n:
                axes.annotate(str(n), (x, y), textcoords="offset points", xytext=(6, -10), fontsize=8)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share that is right")

    return _draw("reliability", paint)


def _risk(evaluation: Evaluation) -> str:
    wrong = ~evaluation.table.right

    def paint(axes: Axes) -> None:
        for label, scores, colour in (
            ("confidence", evaluation.confidence, _SERIES[0]),
            ("mean log probability", evaluation.mean_logprob, _SERIES[1]),
        ):
            coverage, risk = risk_coverage(scores, wrong)
            kept = np.unique(np.linspace(0, len(risk) - 1, _EVERY).astype(int))
            axes.plot(coverage[kept], risk[kept], label=label, color=colour, linestyle="-" if colour == _SERIES[0] else "--")
        axes.axhline(wrong.mean(), color=_INK, linewidth=0.8, linestyle=":", label="all of them")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="share of answers kept (coverage)", ylabel="share of them that is wrong")
        axes.legend()

    return _draw("risk", paint)


def _histogram(fitted: Fitted) -> str:
    first, calibration = fitted.evaluations[0], fitted.calibration
    right = first.table.right

    def paint(axes: Axes) -> None:
        bins = np.linspace(0, 1, 31).tolist()
        axes.hist(first.confidence[right], bins, histtype="step", color=_SERIES[0], label="right", linewidth=1.6)
        axes.hist(first.confidence[~right], bins, histtype="step", color=_SERIES[1], label="wrong", linewidth=1.6, linestyle="--")
        for place, line in ((calibration.low, ":"), (calibration.threshold, "--"), (calibration.high, ":")):
            axes.axvline(place, color=_INK, linewidth=0.8, linestyle=line)
        axes.set(xlim=(0, 1), xlabel="confidence", ylabel="answers")
        axes.legend()

    return _draw("histogram", paint)


def _draw(name: str, paint: Callable[[Axes], None]) -> str:
    """An SVG element whose colours are the page's, with names that begin with `name`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: Any = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(5.4, 3.8), layout="constrained")
        paint(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns(?::\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", '<svg aria-hidden="true"', 1).strip()
