"""`edgelm route spent`: what cloud endpoints have cost today and this month, and what remains."""

from __future__ import annotations

import json as jsons
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from edgelm.runtime.commands.routing import configuration
from edgelm.runtime.settings import read_settings

if TYPE_CHECKING:
    from edgelm.runtime.router.amounts import BudgetLimits
    from edgelm.runtime.router.budget import Spending

_HEADER = ("PERIOD", "OF", "SPENT", "RESERVED", "REMAINING", "LIMIT", "ENDS (UTC)")

Config = Annotated[Path, typer.Argument(metavar="FILE", help="The router's configuration.")]


class _Row(NamedTuple):
    """One amount of one period; None for what has no bound."""

    period: str
    name: str
    spent: int | Decimal
    reserved: int | Decimal
    remaining: int | Decimal | None
    limit: int | Decimal | None
    ends: datetime


def spent(
    file: Config,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with money as text.")] = False,
) -> None:
    """Show what was spent on cloud endpoints today and this month, what is reserved, and what remains."""
    config = configuration(file)
    from edgelm.runtime.commands.tables import print_table
    from edgelm.runtime.router.budget import Budget, was_begun
    from edgelm.runtime.router.deployment import budget_path, limits_of, price_of

    path = budget_path(config, read_settings())
    currency = "" if config.cloud is None else config.cloud.currency
    limits = limits_of(config)
    begun = was_begun(path)
    with _there_or_empty(path, begun) as place:
        rows = list(_rows(Budget(place, limits, price_of(config)).spent(), limits))
    if json:
        print(jsons.dumps({"file": str(path), "currency": currency or None, **_as_json(rows)}))
        return
    if not begun:
        print(f"Nothing has been spent: there is no {path}.", file=sys.stderr)
    print_table(_HEADER, [_cells(row, currency) for row in rows])


@contextmanager
def _there_or_empty(path: Path, begun: bool) -> Iterator[Path]:
    """The budget; where none was begun, an empty one elsewhere: to look at it leaves nothing behind."""
    if begun:
        yield path
    else:
        with TemporaryDirectory() as folder:
            yield Path(folder) / path.name


def _rows(spending: Spending, limits: BudgetLimits) -> Iterator[_Row]:
    for period in (spending.day, spending.month):
        for name in ("requests", "tokens", "money"):
            settled, reserved = (getattr(usage, name) for usage in (period.settled, period.reserved))
            remaining, limit = getattr(period, f"remaining_{name}"), getattr(limits, f"{name}_per_{period.name}")
            yield _Row(period.name, name, settled, reserved, remaining, limit, period.resets_at)


def _as_json(rows: list[_Row]) -> dict[str, Any]:
    def number(value: int | Decimal | None) -> int | str | None:
        return f"{value:f}" if isinstance(value, Decimal) else value

    found: dict[str, Any] = {}
    for row in rows:
        period = found.setdefault(row.period, {"ends": row.ends.isoformat()})
        period[row.name] = {name: number(getattr(row, name)) for name in ("spent", "reserved", "remaining", "limit")}
    return found


def _cells(row: _Row, currency: str) -> tuple[str, ...]:
    def text(value: int | Decimal | None) -> str:
        return "no bound" if value is None else f"{value:,f}" if isinstance(value, Decimal) else f"{value:,}"

    name = currency or row.name if row.name == "money" else row.name
    return (row.period, name, *map(text, (row.spent, row.reserved, row.remaining, row.limit)), f"{row.ends:%Y-%m-%d %H:%M}")
