"""`edgebench power import`: energies of a finished run from the CSV log of a meter outside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgelm.bench.commands import options
from edgelm.bench.power.csv_columns import Choice
from edgelm.bench.power.csv_log import Scope, import_log
from edgelm.bench.record_file import read_record, write_record
from edgelm.bench.report.tables import print_record


def import_log_command(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="A record of edgebench run, load or sustain --json.")],
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The meter's CSV log, with a line of headings.")],
    out: Annotated[Path, typer.Option("--out", metavar="NEW", help="The record to write, with the log's energies.")],
    scope: Annotated[Scope, typer.Option(help="What the meter covered.")],
    time: Annotated[str | None, typer.Option("--time", metavar="NAME", help="Column of the time.", show_default="recognized")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="NAME", help="Column of power or energy; given twice: of voltage and of current."),
    ] = None,
    unit: Annotated[
        list[str] | None, typer.Option("--unit", metavar="UNIT", help="Unit of each --column: W, mW, J, Wh, kWh, V, A, mA, ...")
    ] = None,
    offset: Annotated[
        float | None,
        typer.Option(metavar="S", help="Seconds to add to the log's times; needed where they count from the log's own start."),
    ] = None,
    uncertainty: Annotated[
        str, typer.Option(metavar="P%", help="Uncertainty that the meter's maker states.", show_default="not known")
    ] = "",
) -> None:
    """Put a meter's CSV log into a record, aligned by the wall clock, and compute all energies anew."""
    stated = options.fraction(uncertainty, "--uncertainty") if uncertainty else None
    choice = Choice(time, tuple(column or ()), tuple(unit or ()))
    new = import_log(read_record(record), log, scope, choice, offset, stated)
    write_record(out, new)
    print_record(new, Console())
