"""`edgebench history`: the records kept of earlier runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgelm.bench import history
from edgelm.bench.history import Entry
from edgelm.bench.record_file import encode_record, write_record
from edgelm.bench.report.section import Section, number
from edgelm.bench.report.tables import print_record, print_section

app = typer.Typer(help="Records of earlier runs.", invoke_without_command=True, no_args_is_help=False)

Id = Annotated[str, typer.Argument(metavar="ID", help="The record's id, or its beginning.")]


@app.callback()
def list_records(
    context: typer.Context,
    model: Annotated[str, typer.Option(metavar="NAME", help="Only models whose name contains this.")] = "",
    engine: Annotated[str, typer.Option(metavar="NAME", help="Only records that measured this engine.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 20,
) -> None:
    """List records, the newest first."""
    if context.invoked_subcommand is not None:
        return
    console = Console()
    found = history.entries(model, engine, limit)
    if not found:
        console.print(
            "no such record is in the history" if model or engine else "the history is empty; edgebench run keeps its records here"
        )
        return
    columns = ("id", "started (UTC)", "command", "model", "state", "tokens/s", "J/token", "processor", "engines")
    remark = "tokens/s: the fastest decode, the most under load, or the steady speed. J/token: of that decode, gross."
    print_section(Section("History", columns, tuple(_cells(entry) for entry in found), 1, remark), console)


@app.command()
def show(record_id: Id) -> None:
    """Print a record's tables."""
    print_record(history.load(record_id), Console())


@app.command()
def export(
    record_id: Id,
    out: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="The file to write; standard output without one.")] = None,
) -> None:
    """Write a record as JSON."""
    record = history.load(record_id)
    if out is None:
        typer.echo(encode_record(record))
    else:
        write_record(out, record)


@app.command()
def remove(record_id: Id) -> None:
    """Remove a record from the history for good."""
    Console().print(f"removed {history.remove(record_id)}", highlight=False)


def _cells(e: Entry) -> tuple[str, ...]:
    started = e.started_utc[:16].replace("T", " ")
    figures = number(e.tokens_per_s), number(e.j_per_token)
    return e.id, started, e.kind, e.model, e.state, *figures, e.cpu, ", ".join(e.engines)
