"""Plots as SVG that lives inside a page: no font and no colour of its own, so that the page's scheme decides, light or dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from edgelm.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_COLOURS = 6
_MAX_LABEL = 56
INK = "#010203"
"""Of text and axes."""

_GRID = "#040506"
_SERIES = tuple(f"#0a0b{index:02x}" for index in range(N_COLOURS))
_VARIABLES = {INK: "--ink", _GRID: "--grid"} | {colour: f"--series-{n}" for n, colour in enumerate(_SERIES, 1)}
_MARKERS = "osD^vP"
_LINES = ("-", "--", ":", "-.")

_LOG_STEPS = (
    (1e3, (1.0,)),
    (8.0, (1.0, 2.0, 5.0)),
    (2.5, (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)),
    (0.0, tuple(n / 10 for n in (10, 11, 12, 13, 14, 16, 18, 20, 22, 25, 28, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95))),
)
"""Where a logarithmic axis has numbers, by how many times its end is its beginning."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: sharp at every size, and readable to a screen reader
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.labelsize": 10.0,
    "axes.titlesize": 10.0,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # names come from files
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "errorbar.capsize": 3.0,
}


def draw(name: str, paint: Callable[[Sequence[Axes]], None], n_panels: int = 1, panel_height: float = 3.1) -> str:
    """An SVG element of what `paint` draws on panels one above the other, which share their horizontal axis.

    Args:
        name: unique on the page; the element's own names begin with it.
        panel_height: of one panel, in units of which the width has 5.4.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(f"plots need matplotlib, which is not installed ({error}); pip install 'edgelm[bench]'") from error
    settings: Any = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a name in a script that matplotlib's font lacks; the page's font shows it
        figure = Figure(figsize=(5.4, panel_height * n_panels + 0.7), layout="constrained")
        panels = figure.subplots(n_panels, 1, sharex=True, squeeze=False)[:, 0]
        paint(list(panels))
        return _inline(name, figure)


def looks(series: Sequence[tuple[str, str]]) -> list[int]:
    """Numbers for `style`, one for each (engine, how it ran): an engine keeps its colour and a way to run its line, while they last."""
    engines, ways = list(dict.fromkeys(engine for engine, _ in series)), list(dict.fromkeys(way for _, way in series))
    if len(engines) > N_COLOURS or len(ways) > len(_LINES):
        return list(range(len(series)))
    return [engines.index(engine) + N_COLOURS * ways.index(way) for engine, way in series]


def style(index: int) -> dict[str, Any]:
    """Colour, marker and line of a series: no two of the first 24 look alike, even without colours."""
    return {
        "color": _SERIES[index % N_COLOURS],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _LINES[index // N_COLOURS % len(_LINES)],
    }


def legend_below(axes: Axes) -> None:
    """A legend that covers nothing; one column where labels are long."""
    handles, labels = axes.get_legend_handles_labels()
    figure = axes.get_figure(root=True)
    if labels and figure is not None:
        n_columns = 2 if max(map(len, labels)) <= 26 else 1
        figure.legend(handles, [_shortened(label) for label in labels], loc="outside lower left", ncols=n_columns)


def _shortened(label: str) -> str:
    half = _MAX_LABEL // 2
    return label if len(label) <= _MAX_LABEL else f"{label[:half]}…{label[-half:]}"


def plain_log(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with numbers as people write them, and few enough not to touch."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    if which == "x":
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    axis, (low, high) = (axes.xaxis, axes.get_xlim()) if which == "x" else (axes.yaxis, axes.get_ylim())
    ratio = high / low
    steps = next(steps for least, steps in _LOG_STEPS if ratio > least)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _inline(name: str, figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns(?::\w+)?="[^"]*"', "", svg)  # HTML knows them, and the page then names no address at all
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", '<svg aria-hidden="true"', 1).strip()
