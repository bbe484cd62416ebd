"""A record as Markdown, to be pasted into a README or an issue."""

from __future__ import annotations

import re

from edgelm.bench.record import Record
from edgelm.bench.report.doubts import doubts
from edgelm.bench.report.section import Section
from edgelm.bench.report.sections import facts, heading, sections

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#])")


def markdown(record: Record) -> str:
    """Facts, tables and notes. Names from files show as they are: nothing in them is taken for Markdown or HTML."""
    lines = [f"## {_plain(heading(record))}", ""]
    lines += [f"- {name}: {_plain(value)}" for name, value in facts(record)]
    for section in sections(record):
        lines += ["", *_section(section)]
    notes = doubts(record)
    if notes:
        lines += ["", "### Notes", "", *(f"- {_plain(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def _section(section: Section) -> list[str]:
    if not section.columns:
        return [_plain(section.remark)]
    rules = ["---" if index < section.n_names else "---:" for index in range(len(section.columns))]
    table = [_row([_plain(column) for column in section.columns]), _row(rules)]
    table += [_row([_plain(cell) for cell in row]) for row in section.rows]
    return [f"### {_plain(section.title)}", "", *table, *(["", _plain(section.remark)] if section.remark else [])]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
