"""Tables on stdout: fitted to a terminal, never cut in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows below a header; columns whose cells are all numbers and units stand flush right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [tuple(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for n, name in enumerate(header):
        is_number = bool(cells) and all(row[n][:1].isdigit() for row in cells)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # plain text: names come from files and may hold markup
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair a line."""
    pairs = list(facts)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name:<{width}}  {value}")
