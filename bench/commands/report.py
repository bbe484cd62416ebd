"""`edgebench report`: records as a page, CSV, Markdown, or JSON Lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgelm.bench.commands.record_argument import find_record
from edgelm.bench.record import Record
from edgelm.bench.record_file import write_text
from edgelm.bench.report.csv_export import csv_text
from edgelm.bench.report.llama_bench import jsonl
from edgelm.bench.report.markdown import markdown
from edgelm.bench.report.page import html_page
from edgelm.bench.report.tables import print_record


def report(
    records: Annotated[list[str], typer.Argument(metavar="RECORD...", help="Files, or ids of edgebench history.")],
    html: Annotated[Path | None, typer.Option(metavar="OUT", help="One page with plots and tables, which needs nothing else.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="OUT", help="One row per measurement.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", metavar="OUT", help="Tables for a README or an issue.")] = None,
    jsonl_file: Annotated[Path | None, typer.Option("--jsonl", metavar="OUT", help="JSON Lines with the fields of llama-bench.")] = None,
) -> None:
    """Show records, or write them in other forms."""
    found = [find_record(text) for text in records]
    console = Console()
    wanted = [(html, lambda: html_page(found)), (csv, lambda: _rows(found)), (markdown_file, lambda: "\n".join(map(markdown, found)))]
    wanted.append((jsonl_file, lambda: "".join(map(jsonl, found))))
    if not any(path for path, _ in wanted):
        for record in found:
            print_record(record, console)
    for path, text in wanted:
        _write(path, text, console)


def _write(path: Path | None, text: Callable[[], str], console: Console) -> None:
    if path is not None:
        write_text(path, text())
        console.print(f"wrote {path}", highlight=False, markup=False)


def _rows(records: Sequence[Record]) -> str:
    """The rows of all records under one heading."""
    texts = [csv_text(record) for record in records]
    return texts[0] + "".join(text.partition("\n")[2] for text in texts[1:])
