"""The columns of a meter's CSV log: which hold time, power, energy, voltage and current, and in which units."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from io import StringIO
from pathlib import Path
from typing import Literal

from edgelm.errors import MeterError

Quantity = Literal["power", "energy", "voltage", "current", "time"]

_MAX_BYTES = 1 << 28
_UNITS: dict[str, tuple[Quantity, float]] = {
    "kW": ("power", 1e3), "W": ("power", 1.0), "mW": ("power", 1e-3), "uW": ("power", 1e-6),
    "kWh": ("energy", 3.6e6), "Wh": ("energy", 3600.0), "mWh": ("energy", 3.6),
    "kJ": ("energy", 1e3), "J": ("energy", 1.0), "mJ": ("energy", 1e-3),
    "V": ("voltage", 1.0), "mV": ("voltage", 1e-3),
    "A": ("current", 1.0), "mA": ("current", 1e-3), "uA": ("current", 1e-6),
    "s": ("time", 1.0), "ms": ("time", 1e-3), "us": ("time", 1e-6),
}  # fmt: skip
_WORDS = {
    "watt": "W", "watts": "W", "milliwatts": "mW", "joule": "J", "joules": "J", "volt": "V", "volts": "V",
    "ampere": "A", "amperes": "A", "amps": "A", "seconds": "s", "sec": "s", "elapsed": "s", "milliseconds": "ms",
}  # fmt: skip
_TIME_NAMES = {"time", "timestamp", "date", "datetime", "date time", "elapsed", "elapsed time", "epoch", "unix", "unix time", "t", "ts"}
_EPOCH_SCALES = ((1e14, 1e-6), (1e11, 1e-3), (1e8, 1.0))  # since 1973 in us, ms, s; what is smaller counts from the log's own start


@dataclass(frozen=True)
class Choice:
    """What a user says about a log; None to recognize it.

    Attributes:
        time: name of the column of times.
        values: name of the column of power or energy, or names of two, of voltage and current.
        units: of these.
    """

    time: str | None = None
    values: tuple[str, ...] = ()
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class Samples:
    """A log's content.

    Attributes:
        times_s: seconds since 1970, or since the log's own start.
        is_wall_clock: which of the two.
        values: watts, or joules of a counter.
    """

    quantity: Literal["power", "energy"]
    times_s: tuple[float, ...]
    is_wall_clock: bool
    values: tuple[float, ...]


@dataclass(frozen=True)
class _Column:
    index: int
    name: str
    quantity: Quantity | None
    scale: float


def read_samples(log: Path, choice: Choice, zone: timedelta | None) -> Samples:
    """Read a CSV log with a line of headings; commas, semicolons or tabs between the cells, lines that begin with # left out.

    Args:
        zone: offset from UTC of wall-clock times that do not say theirs.

    Raises:
        MeterError: it cannot be read, its columns are not clear, a cell makes no sense, or times repeat or go backwards.
    """
    rows = _rows(log)
    _, headings = next(rows, (0, []))
    times = _time_columns(headings, choice, log)
    columns = _value_columns(headings, choice, log)
    quantity: Literal["power", "energy"] = "energy" if columns[0].quantity == "energy" else "power"
    seconds, values, kinds = [], [], set()
    for line, row in rows:
        where = f"{log}, line {line}"
        if len(row) < len(headings):
            raise MeterError(f"{where} has {len(row)} cells under {len(headings)} headings; is the log whole?")
        second, is_wall_clock = _time([row[column.index] for column in times], times[0].scale, zone, where)
        kinds.add(is_wall_clock)
        seconds.append(second)
        values.append(math.prod(_number(row[column.index], where) * column.scale for column in columns))
        _check(seconds, values, quantity, where)
    if len(seconds) < 2 or len(kinds) > 1:
        raise MeterError(
            f"{log} {'mixes kinds of times' if kinds else 'holds no readings'}; give a log of one run with at least two readings"
        )
    return Samples(quantity, tuple(seconds), kinds.pop(), tuple(values))


def _check(seconds: Sequence[float], values: Sequence[float], quantity: str, where: str) -> None:
    if len(seconds) > 1 and seconds[-1] == seconds[-2]:
        raise MeterError(f"{where}: its time is that of the line before; have the meter log fractions of a second, or less often")
    if len(seconds) > 1 and seconds[-1] < seconds[-2]:
        raise MeterError(f"{where}: time goes backwards; the meter's clock was set meanwhile, so that the log cannot be trusted")
    if values[-1] < 0:
        raise MeterError(
            f"{where}: {values[-1]:g} {'J' if quantity == 'energy' else 'W'}, less than nothing; is the meter wired the wrong way?"
        )
    if quantity == "energy" and len(values) > 1 and values[-1] < values[-2]:
        raise MeterError(f"{where}: its counter goes backwards; it was reset meanwhile")


def _rows(log: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells."""
    try:
        if log.stat().st_size > _MAX_BYTES:
            raise MeterError(f"{log} is larger than {_MAX_BYTES >> 20} MB; cut out the time of the run")
        text = log.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MeterError(f"{log} cannot be read as UTF-8 text ({error}); give a CSV log") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise MeterError(f"{log} is empty; give a CSV log with a line of headings")
    delimiter = max(";\t,", key=lines[0].count)
    reader = csv.reader(StringIO(text), delimiter=delimiter)
    try:
        for row in reader:
            if any(cell.strip() for cell in row) and not row[0].startswith("#"):
                cells = [cell.strip() for cell in row]
                # where a comma does not separate cells, it may be a decimal one
                yield reader.line_num, [re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", cell) for cell in cells] if delimiter != "," else cells
    except csv.Error as error:
        raise MeterError(f"{log}, line {reader.line_num}: no CSV ({error})") from error


def _column(headings: Sequence[str], index: int) -> _Column:
    """Unit from a heading such as "Power (W)", "power_mw", "Energy [Wh]" or "watts"."""
    heading = headings[index]
    match = re.fullmatch(r"(.*?)[\s_]*[\[(/]?\s*([kmuµ]?(?:Wh|W|J|V|A|s)|[kmu]?(?:wh|w|j|v|a))\s*[\])]?", heading)
    has_border = match is not None and (not match[1] or re.search(r"[\s_\[(/]", heading[len(match[1]) :][:1]) is not None)
    if match and has_border:
        quantity, scale = _unit(match[2])
        return _Column(index, match[1].strip(" _").casefold(), quantity, scale)
    word = _WORDS.get(heading.casefold())
    plain = re.sub(r"[\s_]+", " ", heading).casefold()
    return _Column(index, plain, *_UNITS[word]) if word else _Column(index, plain, None, 1.0)


def _unit(text: str) -> tuple[Quantity, float]:
    spellings = {unit.casefold(): unit for unit in _UNITS}
    exact = text.replace("µ", "u")
    found = exact if exact in _UNITS else spellings.get(exact.casefold()) if exact.islower() else None
    if found is None:
        raise MeterError(f"{text!r} is no unit that edgebench knows; there are: {', '.join(_UNITS)}")
    return _UNITS[found]


def _time_columns(headings: Sequence[str], choice: Choice, log: Path) -> list[_Column]:
    if choice.time is not None:
        return [_column(headings, _index(headings, choice.time, log))]
    columns = [_column(headings, index) for index in range(len(headings))]
    found = [column for column in columns if column.quantity == "time" or (column.name in _TIME_NAMES and column.quantity is None)]
    if [column.name for column in found] == ["date", "time"] or len(found) == 1:
        return found
    raise MeterError(f"{log}: which column is the time? Its headings are {', '.join(headings)}; give --time NAME")


def _value_columns(headings: Sequence[str], choice: Choice, log: Path) -> list[_Column]:
    if choice.values:
        return _chosen_columns(headings, choice, log)
    columns = [_column(headings, index) for index in range(len(headings))]
    by_quantity = {
        quantity: [column for column in columns if column.quantity == quantity] for quantity in ("power", "energy", "voltage", "current")
    }
    if len(by_quantity["power"]) == 1:
        return by_quantity["power"]
    if not by_quantity["power"] and len(by_quantity["voltage"]) == len(by_quantity["current"]) == 1:
        return [*by_quantity["voltage"], *by_quantity["current"]]
    if not by_quantity["power"] and len(by_quantity["energy"]) == 1:
        return by_quantity["energy"]
    raise MeterError(
        f"{log}: which column is the power? Its headings are {', '.join(headings)}; give --column NAME, and --unit if it has none"
    )


def _chosen_columns(headings: Sequence[str], choice: Choice, log: Path) -> list[_Column]:
    columns = [_column(headings, _index(headings, name, log)) for name in choice.values]
    if choice.units:
        if len(choice.units) != len(columns):
            raise MeterError(f"{len(choice.units)} units were given for {len(columns)} columns; give one --unit for each --column")
        columns = [_Column(column.index, column.name, *_unit(unit)) for column, unit in zip(columns, choice.units, strict=True)]
    quantities = sorted(str(column.quantity) for column in columns)
    if quantities not in (["power"], ["energy"], ["current", "voltage"]):
        raise MeterError(
            f"{log}: column {' and '.join(choice.values)} would be {' and '.join(quantities)}; give --unit, such as W, mW, J or Wh"
        )
    return columns


def _index(headings: Sequence[str], name: str, log: Path) -> int:
    if headings.count(name) != 1:
        raise MeterError(f"{log} has {headings.count(name)} columns {name!r}; its headings are {', '.join(headings)}")
    return headings.index(name)


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MeterError(f"{where}: {cell[:40]!r} is no number; take the line out, or have the meter log plain figures")
    return value


def _time(cells: Sequence[str], scale: float, zone: timedelta | None, where: str) -> tuple[float, bool]:
    """Seconds, and whether they are since 1970."""
    text = " ".join(cells)
    if len(cells) == 1 and re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", text, re.IGNORECASE):
        value = _number(text, where)
        if scale != 1.0:
            return value * scale, value * scale >= _EPOCH_SCALES[-1][0]
        unit = next((unit for least, unit in _EPOCH_SCALES if value >= least), None)
        return (value, False) if unit is None else (value * unit, True)
    try:
        moment = datetime.fromisoformat(re.sub(r"^(\d{4})/(\d\d)/(\d\d)", r"\1-\2-\3", text))
    except ValueError:
        raise MeterError(f"{where}: {text[:40]!r} is no time; write 2026-01-31 12:00:00.250, or seconds") from None
    if len(text) <= len("2026-01-31"):
        raise MeterError(f"{where}: {text!r} is a day and no time")
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone(zone or timedelta()))).timestamp(), True
