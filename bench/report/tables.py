"""A record on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgelm.bench.record import Record
from edgelm.bench.report.doubts import doubts
from edgelm.bench.report.section import Section
from edgelm.bench.report.sections import heading, sections

_COUNTS = ("threads", "depth", "prompt")
_WORDS = ("started (UTC)", "command", "model", "state", "processor", "engines")
_GAP = 3  # between two columns


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
    """One table with its remark; a remark alone is a line.

    Where the console is too narrow, the columns of figures are split over several tables, so that no number is ever cut.
    """
    if not section.columns:
        console.print(Text(section.remark))
        return
    console.print(Text(section.title, style="italic"))
    for n, columns in enumerate(_fitting(section, console.width)):
        if n:
            console.print()
        console.print(_table(section, columns))
    if section.remark:
        console.print(Text(section.remark, style="dim italic"))


def _table(section: Section, columns: Sequence[int]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for index in columns:
        column = section.columns[index]
        is_name = (index < section.n_names and column not in _COUNTS) or column in _WORDS
        table.add_column(Text(column), justify="left" if is_name else "right", overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(row[index]) for index in columns))
    return table


def _fitting(section: Section, width: int) -> Iterator[list[int]]:
    """Columns for tables that fit the width, each with all names and as many figures as there is room for."""
    widths = [max(cell_len(row[index]) for row in (section.columns, *section.rows)) + _GAP for index in range(len(section.columns))]
    names = list(range(section.n_names))
    room = width - sum(widths[: section.n_names])
    chosen: list[int] = []
    for index in range(section.n_names, len(section.columns)):
        if chosen and sum(widths[i] for i in chosen) + widths[index] > room:
            yield names + chosen
            chosen = []
        chosen.append(index)
    yield names + chosen
