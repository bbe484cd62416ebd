"""One HTML page that needs nothing else, no script, no font, no address, and plots drawn into it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from edgelm.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GRID = "#010203", "#040506"
SERIES = ("#0a0b00", "#0a0b01", "#0a0b02", "#0a0b03")
"""Colours to draw with; the page puts those of its scheme, light or dark, in their place."""

_VARIABLES = {INK: "--ink", GRID: "--grid"} | {colour: f"--series-{n}" for n, colour in enumerate(SERIES, 1)}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: sharp at every size, and readable to a screen reader
    "font.family": "sans-serif",
    "font.size": 10.0,
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
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
}

_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --paper: #ffffff; --panel: #f6f7f9; --ink: #1c2530; --soft: #5a6675; --grid: #d9dee5; --warn: #8a4b00; --warn-paper: #fff4e0;
  --series-1: #0b62a8; --series-2: #c2410c; --series-3: #047857; --series-4: #475569; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181d; --panel: #1c2229; --ink: #e6ebf0; --soft: #a3b0be; --grid: #36404b; --warn: #ffc46b; --warn-paper: #33270f;
    --series-1: #6cb6ff; --series-2: #ff9e64; --series-3: #4fd6a5; --series-4: #b6c2cf; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1.2rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--grid); overflow-wrap: anywhere; }
p { margin: .4rem 0; }
figcaption, .remark { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .6rem 0; font-size: .95rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.notes { background: var(--warn-paper); border-left: 4px solid var(--warn); padding: .5rem 1rem; margin: .8rem 0; }
.notes ul { margin: .2rem 0; padding-left: 1.1rem; }
.notes strong { color: var(--warn); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; align-items: start; }
figure { margin: 0; padding: .8rem; background: var(--panel); border-radius: 6px; break-inside: avoid; }
figure.wide { grid-column: 1 / -1; }
figure h3 { margin: 0 0 .4rem; font-size: 1rem; }
figure svg { display: block; width: 100%; height: auto; font-family: inherit; }
figcaption { margin-top: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
@media (max-width: 40rem) { body { padding: .8rem; } dl { grid-template-columns: 1fr; } dt { margin-top: .3rem; } }
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<dl>{% for name, value in facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% if notes %}<div class="notes" role="note"><strong>Before you trust these figures</strong>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul></div>{% endif %}
</header>
<main>
<div class="plots">
{% for plot in plots %}<figure id="plot-{{ plot.name }}"{% if plot.wide %} class="wide"{% endif %}
 role="group" aria-label="{{ plot.title }}"><h3>{{ plot.title }}</h3>
{{ plot.svg|safe }}
<figcaption>{{ plot.text }}</figcaption></figure>
{% endfor %}</div>
{% for section in sections %}<section>
<h2>{{ section.title }}</h2>
<div class="scroll"><table>
<thead><tr>{% for column in section.columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in section.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>
{% if section.remark %}<p class="remark">{{ section.remark }}</p>{% endif %}
</section>
{% endfor %}</main>
</body>
</html>
"""


@dataclass(frozen=True)
class Plot:
    """A drawing; its name is unique on a page, its text says what it shows; a wide one has a row to itself."""

    name: str
    title: str
    svg: str
    text: str
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A table, the first column of which holds names."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    remark: str = ""


def page(title: str, facts: Sequence[tuple[str, str]], notes: Sequence[str], plots: Sequence[Plot], sections: Sequence[Section]) -> str:
    """The HTML; all values are escaped but the drawings, which are our own."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_TEMPLATE).render(title=title, facts=facts, notes=notes, plots=plots, sections=sections)


def check_plots() -> None:
    """Before the work that would be vain without them.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(f"plots need matplotlib, which is not installed ({error}); pip install 'edgelm[route]'") from error


def draw(name: str, paint: Callable[[Axes], None], width: float = 5.4, height: float = 3.6) -> str:
    """An SVG element of what `paint` draws.

    Args:
        name: unique on the page; the element's own names begin with it.
        width, height: in inches, for text of 10 points; the page stretches it to its place.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    check_plots()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: Any = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    return _inline(name, text.getvalue())


def legend_below(axes: Axes) -> None:
    """A legend that covers nothing."""
    figure = axes.get_figure(root=True)
    if figure is not None:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)


def _inline(name: str, svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns(?::\w+)?="[^"]*"', "", svg)  # HTML knows them, and the page then names no address at all
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", '<svg aria-hidden="true"', 1).strip()
