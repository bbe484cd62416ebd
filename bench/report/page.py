"""Records as one HTML page that needs nothing else: no script, no font, no address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined

from edgelm.bench.record import Record
from edgelm.bench.report.doubts import doubts
from edgelm.bench.report.machine_plots import load_levels, roofline, sustain_trace
from edgelm.bench.report.page_template import TEMPLATE
from edgelm.bench.report.plots import Plot, missing, record_label, run_plots
from edgelm.bench.report.section import Section
from edgelm.bench.report.sections import facts, heading, sections
from edgelm.errors import InvalidRequestError


@dataclass(frozen=True)
class Part:
    """What the page says of one record in words and tables."""

    id: str
    heading: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    settings: tuple[tuple[str, str], ...]


def html_page(records: Sequence[Record]) -> str:
    """The page of one or more records; with several, the plots show them together.

    Raises:
        InvalidRequestError: there is no record.
        MissingPackageError: matplotlib is not installed.
    """
    if not records:
        raise InvalidRequestError("a page needs at least one record")
    parts = [
        Part(r.id, heading(r), facts(r), doubts(r), sections(r), tuple((name, str(value)) for name, value in r.settings.items()))
        for r in records
    ]
    title = heading(records[0]) if len(records) == 1 else f"{len(records)} records of edgebench"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE).render(title=title, pages=parts, plots=_plots(records))


def _plots(records: Sequence[Record]) -> list[Plot]:
    runs = [record for record in records if record.kind == "run"]
    plots = list(run_plots(runs)) if runs else []
    for n, record in enumerate(records):
        label = record_label(record, records)
        if record.kind == "run":
            plots.append(_named(roofline(record, f"roofline-{n}"), label))
        if record.load is not None:
            plots.append(_named(load_levels(record.load, f"load-{n}"), label))
        plots += [_named(sustain_trace(record, s, f"sustain-{n}-{k}"), label) for k, s in enumerate(record.sustain)]
    if not any(record.sustain for record in records):
        text = "How speed, clock, temperature and watts hold for minutes was not measured; edgebench sustain MODEL does that."
        plots.append(missing("sustain", "Sustained speed", text))
    return sorted(plots, key=lambda plot: not plot.svg)  # what is drawn comes first


def _named(plot: Plot, label: str) -> Plot:
    return Plot(plot.name, plot.title + label, plot.svg, plot.text)
