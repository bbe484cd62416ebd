"""What a command does with its record: show it, keep it, and end with the exit code it deserves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from edgelm.bench.history import add as add_to_history
from edgelm.bench.interleave import Progress as Report
from edgelm.bench.record import Record
from edgelm.bench.record_file import write_record, write_text
from edgelm.bench.report.tables import print_record


def with_progress_bar(measure: Callable[[Report], Record]) -> Record:
    """Run `measure`, and show on stderr how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)
        return measure(lambda text, done: bar.update(task, description=text, completed=done))


def finish(record: Record, json_file: Path | None = None, html: Path | None = None, keep: bool = True) -> None:
    """Print the record, write the files asked for, keep it in the history, and end the command.

    Raises:
        RecordError: a file cannot be written.
        typer.Exit: with 130 (interrupted), 1 (an engine failed) or 3 (a gate was not kept).
    """
    print_record(record, Console())
    if json_file is not None:
        write_record(json_file, record)
    if html is not None:
        from edgelm.bench.report.page import html_page

        write_text(html, html_page([record]))
    if keep:
        add_to_history(record)
    if record.state == "interrupted":
        raise typer.Exit(130)
    if record.state == "failed":
        raise typer.Exit(1)
    if any(quality.passed is False for quality in record.quality):
        raise typer.Exit(3)
