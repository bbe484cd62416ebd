"""`edgebench compare`: two records side by side, with an exit code for CI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from edgelm.bench.commands.options import fraction
from edgelm.bench.commands.record_argument import find_record
from edgelm.bench.compare_records import Change, Comparison, EnergyChange, QualityChange, compare_records
from edgelm.bench.report.section import NOTHING, Section, number, percent, ratio
from edgelm.bench.report.tables import print_section

_DRIFT = (
    "A and B were measured at different times, and a machine drifts from one to the other. What differs by a few per cent is sure only "
    "within one record, where engines take turns, or over several records."
)
_UNCERTAINTY = "Gross energy. ±: uncertainties of both meters together, at most: what one meter is always wrong by, cancels."
_QUALITY_COLUMNS = ("engine", "precision", "perplexity A", "B", "mean KL A", "B", "top token agrees A", "B", "gate of B")


def compare(
    old: Annotated[str, typer.Argument(metavar="A", help="The record to compare with: a file, or an id of edgebench history.")],
    new: Annotated[str, typer.Argument(metavar="B", help="The record in question.")],
    gate: Annotated[str, typer.Option(metavar="P%", help="Exit with 3 if anything of B is slower than A by more than this.")] = "",
) -> None:
    """What is faster or slower in record B than in record A, beyond the noise of both."""
    comparison = compare_records(find_record(old), find_record(new), fraction(gate, "--gate") if gate else None)
    console = Console()
    _print(comparison, console)
    if comparison.failures:
        raise typer.Exit(3)


def _print(comparison: Comparison, console: Console) -> None:
    console.print(Text(f"A: record {comparison.old.id} of {comparison.old.started}"))
    console.print(Text(f"B: record {comparison.new.id} of {comparison.new.started}"))
    _print_list("DIFFERENT between A and B:", comparison.differences, console, "bold yellow")
    for section in _sections(comparison):
        console.print()
        print_section(section, console)
    console.print()
    _print_list("Only in A:", comparison.only_old, console)
    _print_list("Only in B:", comparison.only_new, console)
    _print_list("Not compared:", comparison.remarks, console)
    _print_list("GATE NOT KEPT:", comparison.failures, console, "bold red")
    if comparison.gate is not None and not comparison.failures:
        console.print(Text(_kept(comparison, comparison.gate), style="green"))


def _kept(comparison: Comparison, gate: float) -> str:
    noisy = sum(change.may_be_below for change in comparison.changes)
    if not noisy:
        return f"gate kept: nothing is slower by {percent(gate)} or more"
    return (
        f"gate kept: nothing is for sure slower by more than {percent(gate)}, but {noisy} of {len(comparison.changes)} figures "
        "are too noisy to rule it out; measure with more --repeat on a quiet machine"
    )


def _print_list(title: str, lines: Iterable[str], console: Console, style: str = "bold") -> None:
    lines = tuple(lines)
    if lines:
        console.print(Text(title, style=style))
    for line in lines:
        console.print(Text(f"- {line}"))


def _sections(comparison: Comparison) -> Iterator[Section]:
    rows: tuple[tuple[str, ...], ...]
    if comparison.changes:
        rows = tuple(_change_cells(change) for change in comparison.changes)
        yield Section("Speed", ("what", "figure", "A", "B", "B / A (95% interval)", "verdict"), rows, 2, _DRIFT)
    if comparison.energies:
        rows = tuple(_energy_cells(energy) for energy in comparison.energies)
        yield Section("Energy", ("what", "J per", "meter", "A", "B", "B / A", "±", "verdict"), rows, 3, _UNCERTAINTY)
    if comparison.qualities:
        rows = tuple(_quality_cells(quality) for quality in comparison.qualities)
        yield Section("Quality", _QUALITY_COLUMNS, rows, 2, "± is one standard error.")


def _change_cells(c: Change) -> tuple[str, ...]:
    marks = [f"{name} {state}" for name, state in zip("AB", c.states, strict=True) if state != "complete"]
    verdict = c.verdict.upper() if c.below_gate else c.verdict
    return (
        c.name + (f" ({', '.join(marks)})" if marks else ""),
        c.figure,
        number(c.old),
        number(c.new),
        ratio(c.ratio) if c.ratio else NOTHING,
        verdict,
    )


def _energy_cells(e: EnergyChange) -> tuple[str, ...]:
    return e.name, e.unit, e.meter, number(e.old_j), number(e.new_j), f"{e.ratio:.3f}", percent(e.uncertainty), e.verdict


def _quality_cells(change: QualityChange) -> tuple[str, ...]:
    a, b = change.old, change.new
    return (
        f"{b.model.name} with {b.engine}" if b.model else b.engine,
        b.precision,
        *(f"{number(q.perplexity)} ± {number(q.se_perplexity)}" for q in (a, b)),
        *(f"{number(q.mean_kl)} ± {number(q.se_mean_kl)}" for q in (a, b)),
        *(f"{q.top_agreement:.1%} ± {q.se_top_agreement:.1%}" for q in (a, b)),
        NOTHING if b.gate is None else "kept" if b.passed else "MISSED",
    )
