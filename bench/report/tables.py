"""A record on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edgelm.bench.record import Record
from edgelm.bench.report.doubts import doubts
from edgelm.bench.report.section import Section
from edgelm.bench.report.sections import heading, sections


def print_record(record: Record, console: Console) -> None:
    """The record's tables, then what casts doubt on them."""
    console.print(Text(heading(record), style="bold"))
    for section in sections(record):
        console.print()
        print_section(section, console)
    console.print()
    notes = doubts(record)
    if notes:
        console.print(Text("Notes", style="bold"))
    for note in notes:
        console.print(Text(f"- {note}"))
    console.print(Text(f"record {record.id}"))


def print_section(section: Section, console: Console) -> None:
    """One table with its remark; a remark alone is a line."""
    if not section.columns:
        console.print(Text(section.remark))
        return
    table = Table(title=escape(section.title), title_justify="left")
    for index, column in enumerate(section.columns):
        is_name = index < section.n_names and column not in ("threads", "depth", "prompt")
        table.add_column(column, justify="left" if is_name else "right")
    for row in section.rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    if section.remark:
        console.print(Text(section.remark, style="dim italic"))
