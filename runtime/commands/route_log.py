"""`edgelm route log` and `edgelm route verify`: what has left this device, and whether the log of it is whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgelm.errors import RecordError
from edgelm.runtime.settings import read_settings

if TYPE_CHECKING:
    from edgelm.runtime.router.egress_record import Record

_HEADER = ("TIME (UTC)", "ENDPOINT", "LEVEL", "WHY", "BYTES", "ENTITIES", "TOKENS", "COST", "OUTCOME")

LogPath = Annotated[Path | None, typer.Option("--path", metavar="FILE", help="The log.", show_default="the router's own")]


def log(
    path: LogPath = None,
    last: Annotated[int, typer.Option(help="How many, at most.", min=1)] = 20,
    json: Annotated[
        bool, typer.Option("--json", help="Print the log's own lines: two for each attempt, when it began and how it ended.")
    ] = False,
) -> None:
    """List what was sent to cloud endpoints last, and what was kept from it."""
    from edgelm.runtime.commands.tables import print_table
    from edgelm.runtime.router.egress_log import head_path
    from edgelm.runtime.router.egress_verify import read

    place = path or read_settings().egress_log
    if path is None and not place.exists() and not head_path(place).exists():
        print(f"Nothing has been sent: there is no {place}.")
    elif json:
        for record in deque(read(place), maxlen=last):
            print(record.line.decode())
    else:
        print_table(_HEADER, _rows(read(place), last))


def verify(
    path: LogPath = None,
    head: Annotated[
        str | None, typer.Option(metavar="NUMBER:SHA256", help="A head that was printed earlier: its record must still be there.")
    ] = None,
) -> None:
    """Check that nothing in the log was changed, removed, put in or cut off, and print its head."""
    from edgelm.runtime.router.egress_record import Head
    from edgelm.runtime.router.egress_verify import verify as verify_log

    place = path or read_settings().egress_log
    found = verify_log(place, None if head is None else Head.parse(head))
    problem = found.problem
    if problem is not None:
        where = "" if problem.line is None else f" at line {problem.line}"
        raise RecordError(
            f"{place} is broken{where} ({problem.kind}): {problem.message}; {found.n_records} records are whole, up to {found.head}"
        )
    print(f"{place}: {found.n_records} records, all whole")
    print(f"head {found.head}")
    print("Keep the head where nobody else can write, and give it with --head next time: it tells whether the whole log was exchanged.")


def _rows(records: Iterable[Record], last: int) -> list[tuple[str, ...]]:
    """A row for each attempt or refusal; of the newest ones only."""
    rows: dict[object, dict[str, Any]] = {}
    for record in records:
        fields = record.fields
        key = (str(fields.get("request")), fields.get("attempt")) if record.kind in ("sent", "ended") else record.seq
        if record.kind != "ended":
            rows[key] = {**fields, "kind": record.kind, "time": record.time}
            if len(rows) > last:
                del rows[next(iter(rows))]
        elif key in rows:  # else it began before the newest
            rows[key] |= {name: value for name, value in fields.items() if value is not None}
    return [_cells(row) for row in rows.values()]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    sent = row["kind"] == "sent"
    replaced = row.get("replaced")
    entities = ", ".join(f"{n} {kind}" for kind, n in replaced.items()) if isinstance(replaced, dict) else ""
    values = (
        row["time"][:19].replace("T", " "),
        row.get("endpoint"),
        row.get("level"),
        row.get("reason"),
        row.get("body_bytes"),
        entities,
        row.get("tokens", _at_most(row.get("reserved_tokens"))),
        row.get("cost", _at_most(row.get("reserved_money"))),
        _outcome(row) if sent else f"{row['kind']}, nothing sent" if row["kind"] == "refused" else row["kind"],
    )
    return tuple(_plain(value) for value in values)


def _outcome(row: Mapping[str, Any]) -> str:
    """Without an end its process has died, or the attempt is under way."""
    status = f" ({row['status']})" if "status" in row else ""
    return f"{row['outcome']}{status}" if "outcome" in row else "no end known"


def _at_most(reserved: object) -> str | None:
    return None if reserved is None else f"≤ {_plain(reserved)}"


def _plain(value: object) -> str:
    """Text for a terminal, whatever somebody has written into the file."""
    text = "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    return "".join(letter if letter.isprintable() else "�" for letter in text)
