"""What a command does with its record: show it, keep it, and end with the exit code it deserves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from edgelm.bench.commands.interrupts import no_interrupt
from edgelm.bench.history import add as add_to_history
from edgelm.bench.interleave import Progress as Report
from edgelm.bench.record import Record
from edgelm.bench.record_file import require_records, write_record, write_text
from edgelm.bench.report.tables import print_record
from edgelm.errors import EdgeLMError, RecordError


def with_progress_bar(measure: Callable[[Report], Record]) -> Record:
    """Run `measure`, and show on stderr how far it is.

    Raises:
        MissingPackageError: what records are written with is not installed.
    """
    require_records()  # a record that cannot be kept is told before minutes are spent on it
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)
        return measure(lambda text, done: bar.update(task, description=text, completed=done))


def finish(record: Record, json_file: Path | None = None, html: Path | None = None, keep: bool = True) -> None:
    """Keep the record, print it, write the page asked for, and end the command.

    Raises:
        RecordError: a file cannot be written; all others are, and the record is printed.
        typer.Exit: with 130 (interrupted), 1 (an engine failed) or 3 (a gate was not kept).
    """
    problems: list[str] = []
    with no_interrupt():
        if json_file is not None:
            _attempt(lambda: write_record(json_file, record), problems)
        if keep:
            _attempt(lambda: add_to_history(record), problems)
    print_record(record, Console())
    if html is not None:
        _attempt(lambda: _write_page(html, record), problems)
    if problems:
        raise RecordError("; ".join(dict.fromkeys(problems)))
    if record.state == "interrupted":
        raise typer.Exit(130)
    if record.state == "failed":
        raise typer.Exit(1)
    if any(quality.passed is False for quality in record.quality):
        raise typer.Exit(3)


def _attempt(work: Callable[[], None], problems: list[str]) -> None:
    """What cannot be written must not keep the rest from being written."""
    try:
        work()
    except EdgeLMError as error:
        problems.append(str(error))


def _write_page(path: Path, record: Record) -> None:
    from edgelm.bench.report.page import html_page

    write_text(path, html_page([record]))
