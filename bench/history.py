"""Every record kept in one SQLite file, `bench/history.sqlite` in edgelm's folder: the whole JSON, and columns to find it by.

Any number of processes may write at once. A file that is damaged is reported, and never touched.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgelm.bench.energy_figures import measurement_share
from edgelm.bench.figures import speeds
from edgelm.bench.load.goodput import level_figures
from edgelm.bench.record import Record
from edgelm.bench.record_file import decode_record, encode_record
from edgelm.errors import RecordError
from edgelm.runtime.settings import read_settings

SCHEMA_VERSION = 1

_WAIT_S = 30.0
_CREATE = """
CREATE TABLE records (
    id TEXT PRIMARY KEY,
    started_utc TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    model TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    cpu TEXT NOT NULL,
    engines TEXT NOT NULL,
    tokens_per_s REAL,
    j_per_token REAL,
    record TEXT NOT NULL
)"""
_INDEX = "CREATE INDEX records_by_start ON records (started_utc)"
_SUMMARY = "id, started_utc, kind, state, model, cpu, engines, tokens_per_s, j_per_token"

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """What the history says of a record.

    Attributes:
        started_utc: ISO 8601, to the second.
        engines: names; of a load test none.
        tokens_per_s: the fastest decode (run), the most tokens per second (load), the steady speed (sustain); None without one.
        j_per_token: gross joules per generated token of that decode; None if not measured.
    """

    id: str
    started_utc: str
    kind: str
    state: str
    model: str
    cpu: str
    engines: tuple[str, ...]
    tokens_per_s: float | None
    j_per_token: float | None


def history_path() -> Path:
    """The history's file."""
    return read_settings().home / "bench" / "history.sqlite"


def add(record: Record, path: Path | None = None) -> None:
    """Keep a record. Adding the same one again changes nothing.

    Raises:
        RecordError: the file cannot be written, is damaged or of another version, or has another record of that id.
    """
    text = encode_record(record)
    row = (*_summary(record), text)

    def insert(database: sqlite3.Connection) -> None:
        there = database.execute("SELECT record FROM records WHERE id = ?", (record.id,)).fetchone()
        if there is not None and there[0] != text:
            raise RecordError(f"the history has another record with id {record.id}; remove it with: edgebench history remove {record.id}")
        if there is None:
            database.execute(f"INSERT INTO records VALUES ({', '.join('?' * len(row))})", row)

    _within_transaction(path or history_path(), insert)


def entries(model: str = "", engine: str = "", limit: int = 20, path: Path | None = None) -> tuple[Entry, ...]:
    """The newest records first: those whose model's name contains `model` and that have measured `engine`, at most `limit`.

    Raises:
        RecordError: the file cannot be read, is damaged or of another version.
    """
    query = f"SELECT {_SUMMARY} FROM records WHERE instr(lower(model), lower(?)) > 0 AND instr(engines, ?) > 0"
    query += " ORDER BY started_utc DESC, id LIMIT ?"
    values = (model, f",{engine}," if engine else "", limit)
    nothing: list[tuple[Any, ...]] = []
    rows = _read(path, lambda database: database.execute(query, values).fetchall(), nothing)
    return tuple(Entry(*row[:6], tuple(filter(None, row[6].split(","))), *row[7:]) for row in rows)  # type: ignore[call-arg]


def load(prefix: str, path: Path | None = None) -> Record:
    """The record whose id begins with `prefix`.

    Raises:
        RecordError: there is none, or more than one, or the file cannot be read, is damaged or of another version.
    """
    return decode_record(_find(prefix, "record", path), f"record {prefix} of the history")


def remove(prefix: str, path: Path | None = None) -> str:
    """Remove the record whose id begins with `prefix`; its whole id.

    Raises:
        RecordError: as for load.
    """
    found = _find(prefix, "id", path)
    _within_transaction(path or history_path(), lambda database: database.execute("DELETE FROM records WHERE id = ?", (found,)))
    return found


def _find(prefix: str, column: str, path: Path | None) -> str:
    query = f"SELECT id, {column} FROM records WHERE substr(id, 1, ?) = ? ORDER BY id LIMIT 3"
    nothing: list[tuple[str, str]] = []
    rows = _read(path, lambda database: database.execute(query, (len(prefix), prefix)).fetchall(), nothing) if prefix else nothing
    if not rows:
        raise RecordError(f"the history has no record {prefix!r}; edgebench history lists those there are")
    if len(rows) > 1:
        raise RecordError(f"more than one record begins with {prefix!r} ({', '.join(row[0] for row in rows)}); write more of the id")
    return str(rows[0][1])


def _read(path: Path | None, query: Callable[[sqlite3.Connection], T], nothing: T) -> T:
    path = path or history_path()
    return _within_transaction(path, query) if path.exists() else nothing


def _within_transaction(path: Path, work: Callable[[sqlite3.Connection], T]) -> T:
    """Do `work` on the history as one change: all of it happens or nothing; another writer is waited for."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                _prepare(database, path)
                result = work(database)
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
            return result
    except (sqlite3.OperationalError, OSError) as error:
        raise RecordError(f"the history {path} cannot be used ({error}); check its folder and the disk, or set EDGELM_HOME") from error
    except sqlite3.DatabaseError as error:
        advice = "it was left as it is: move it elsewhere to begin a new one"
        raise RecordError(f"the history {path} is damaged, or no history of edgebench ({error}); {advice}") from error


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return
    if version > SCHEMA_VERSION:
        raise RecordError(f"the history {path} is of version {version}, but this edgebench knows version {SCHEMA_VERSION}; update edgelm")
    if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise RecordError(f"{path} is a database, but no history of edgebench; move it elsewhere to begin a history")
    database.execute(_CREATE)
    database.execute(_INDEX)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _summary(record: Record) -> tuple[object, ...]:
    tokens_per_s, j_per_token = _headline(record)
    engines = dict.fromkeys(
        [e.engine for e in record.engines] + [m.engine for m in record.measurements] + [s.engine for s in record.sustain]
    )
    load_model = record.load.model if record.load else ""
    return (
        record.id,
        _utc(record.started),
        record.kind,
        record.state,
        record.model.name if record.model else load_model,
        record.model.sha256 if record.model else "",
        record.machine.cpu,
        f",{','.join(engines)}," if engines else "",
        tokens_per_s,
        j_per_token,
    )


def _utc(started: str) -> str:
    """ISO 8601 of any offset as UTC, so that texts sort as times do."""
    try:
        return datetime.fromisoformat(started).astimezone(UTC).isoformat(timespec="seconds")
    except ValueError as error:
        raise RecordError(f"the record's start is {started!r}, which is no ISO 8601 time") from error


def _headline(record: Record) -> tuple[float | None, float | None]:
    if record.load is not None:
        rates = [level_figures(level, record.load).tokens_per_s for level in record.load.levels]
        return max((rate for rate in rates if rate is not None), default=None), None
    if record.sustain:
        return record.sustain[0].steady, None
    decodes = [m for m in record.measurements if m.phase == "decode" and m.trials]
    if not decodes:
        return None, None
    fastest = max(decodes, key=lambda m: float(np.median(speeds(m))))
    share = measurement_share(fastest)
    return float(np.median(speeds(fastest))), share.gross_j if share else None
