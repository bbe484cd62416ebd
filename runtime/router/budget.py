"""Budgets of a cloud endpoint: requests, tokens and money, per calendar day and month, kept in a SQLite file.

Before each attempt its worst case is reserved, and is on the disk when `reserve` returns; afterwards the actual figures take its place. An
attempt whose end is never told (the process was killed) stays counted as its worst case, so the sum is never below what was spent.

Days and months are those of UTC: they repeat no hour and do not move with the traveller. An attempt counts where it was reserved, even if
it ends on the next day. Time never runs backwards: where the clock is behind the latest attempt in the file, that attempt's time is taken,
so that a clock put back does not open yesterday's budget again.

Money is in whatever currency the prices and limits are, and is stored in whole millionths, rounded up for each attempt.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Literal, NamedTuple

from edgelm.errors import BudgetExceededError, BusyError, InvalidRequestError, RecordError
from edgelm.runtime.router.amounts import BudgetLimits, Price, Usage, check_number, in_millionths, money_of

SCHEMA_VERSION = 1

_APPLICATION = 0x65_6C_62_67  # "elbg": tells the file from other programs' databases
_WAIT_S = 30.0
_MOST_TOKENS = 10**9  # of one attempt
_CREATE = """
CREATE TABLE attempts (
    id TEXT PRIMARY KEY,
    started INTEGER NOT NULL CHECK (typeof(started) = 'integer'),
    state TEXT NOT NULL CHECK (state IN ('reserved', 'settled', 'released')),
    tokens INTEGER NOT NULL CHECK (typeof(tokens) = 'integer' AND tokens >= 0),
    millionths INTEGER NOT NULL CHECK (typeof(millionths) = 'integer' AND millionths >= 0)
)"""
_INDEX = "CREATE INDEX attempts_by_start ON attempts (started, state, tokens, millionths)"
_SUM = "SELECT count(*), coalesce(sum(tokens), 0), coalesce(sum(millionths), 0) FROM attempts WHERE started >= ? AND state = ?"


@dataclass(frozen=True)
class Reservation:
    """The worst case of one attempt, which is counted from now on."""

    id: str
    worst: Usage


@dataclass(frozen=True)
class PeriodSpending:
    """What a day or month has cost so far.

    Attributes:
        settled: of attempts that have ended.
        reserved: the worst case of those that are under way or whose end was never told.
        remaining_requests, remaining_tokens, remaining_money: of each limit; None without one.
    """

    name: Literal["day", "month"]
    resets_at: datetime
    settled: Usage
    reserved: Usage
    remaining_requests: int | None
    remaining_tokens: int | None
    remaining_money: Decimal | None


@dataclass(frozen=True)
class Spending:
    day: PeriodSpending
    month: PeriodSpending


class Budget:
    """A budget in a file, which any number of threads and processes may share; what they spend is counted together.

    Calls are short, and wait for the disk; asynchronous callers make them in a thread. Every call opens the file anew, so nothing is shared
    between threads, or with a process that forks.

    Args:
        path: made if it is not there, for its owner only, with its folder.
        clock: seconds since 1970, as time.time.

    Raises:
        RecordError: the file cannot be used, is damaged, no budget, or of a later version. A new budget is never begun in its place.
        BusyError: other processes hold it for too long.
    """

    def __init__(self, path: Path, limits: BudgetLimits, price: Price, clock: Callable[[], float] = time.time) -> None:
        self._path = path.absolute()
        self.price = price
        self._clock = clock
        self._bounds = {
            "day": (limits.requests_per_day, limits.tokens_per_day, in_millionths(limits.money_per_day)),
            "month": (limits.requests_per_month, limits.tokens_per_month, in_millionths(limits.money_per_month)),
        }
        with _explained(self._path):
            _make_private(self._path)
        with self._transaction() as database:
            damage = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise sqlite3.DatabaseError(damage)

    def reserve(self, n_input: int, n_output: int) -> Reservation:
        """Count the worst case of one attempt, before anything is sent. It is on the disk when this returns.

        Args:
            n_input: tokens sent, at most.
            n_output: tokens that may come back, at most.

        Raises:
            BudgetExceededError: a limit does not allow it; nothing is counted.
            InvalidRequestError: a number makes no sense.
            RecordError, BusyError: as above; nothing may be sent.
        """
        wanted = self._usage(n_input, n_output)
        with self._transaction() as database:
            now, clock = self._now(database)
            for period in (_month(now), _day(now)):  # the later reset first, if both are reached
                self._check(period, database, wanted, clock)
            reservation = Reservation(secrets.token_hex(16), wanted)
            database.execute("INSERT INTO attempts VALUES (?, ?, 'reserved', ?, ?)", (reservation.id, now, *wanted[1:]))
        return reservation

    def settle(self, reservation: Reservation, n_input: int, n_output: int) -> None:
        """Put what an attempt took in the place of its worst case, even if it is more. Telling it again changes nothing.

        Raises:
            InvalidRequestError: a number makes no sense, other figures were told before, or the reservation is none of this budget.
            RecordError, BusyError: as above; the worst case stays counted.
        """
        actual = self._usage(n_input, n_output)
        with self._transaction() as database:
            state, *before = self._find(database, reservation)
            if state == "settled" and tuple(before) != actual[1:]:
                raise InvalidRequestError(f"attempt {reservation.id} was settled with other figures before; settle each attempt once")
            database.execute(
                "UPDATE attempts SET state = 'settled', tokens = ?, millionths = ? WHERE id = ?", (*actual[1:], reservation.id)
            )

    def release(self, reservation: Reservation) -> None:
        """Count an attempt no more. Only for one of which surely nothing was sent, such as a refused connection; any other is settled.

        Raises:
            InvalidRequestError: it was settled before, so something was sent, or the reservation is none of this budget.
            RecordError, BusyError: as above; the worst case stays counted.
        """
        with self._transaction() as database:
            if self._find(database, reservation)[0] == "settled":
                raise InvalidRequestError(f"attempt {reservation.id} was settled before, so it was sent, and stays counted")
            database.execute("UPDATE attempts SET state = 'released' WHERE id = ?", (reservation.id,))

    def spent(self) -> Spending:
        """What this day and month have cost, and what remains.

        Raises:
            RecordError, BusyError: as above.
        """
        with self._transaction() as database:
            now, _ = self._now(database)
            return Spending(self._spending(_day(now), database), self._spending(_month(now), database))

    def _usage(self, n_input: int, n_output: int) -> Usage:
        check_number("n_input", n_input, _MOST_TOKENS, whole=True)
        check_number("n_output", n_output, _MOST_TOKENS, whole=True)
        return Usage(1, n_input + n_output, self.price.millionths(n_input, n_output))

    def _now(self, database: sqlite3.Connection) -> tuple[int, int]:
        """Seconds since 1970 that count, and those of the clock, which may have been put back."""
        clock = int(self._clock())
        latest = database.execute("SELECT max(started) FROM attempts").fetchone()[0]
        return (clock if latest is None else max(clock, latest)), clock

    def _check(self, period: _Period, database: sqlite3.Connection, wanted: Usage, clock: int) -> None:
        settled, reserved = _sums(period, database)
        for name, bound, *amounts in zip(
            ("requests", "tokens", "money"), self._bounds[period.name], settled, reserved, wanted, strict=True
        ):
            if bound is None or sum(amounts) <= bound:
                continue
            limit, spent, held, more = (f"{money_of(n):f}" if name == "money" else f"{n:,}" for n in (bound, *amounts))
            advice = "this attempt alone is too large: lower its max_tokens" if amounts[-1] > bound else "wait, answer on this device"
            text = (
                f"{name}_per_{period.name} is {limit}: {spent} spent, {held} reserved for attempts whose end is not known, and this one "
                f"may take {more}; it resets at {period.end:%Y-%m-%d %H:%M} UTC; {advice}, or raise the limit"
            )
            if clock < period.start.timestamp():
                text += f" (the clock says {_day(clock).start:%Y-%m-%d}, but has been at {period.start:%Y-%m-%d} or later; set it right)"
            raise BudgetExceededError(text, period.end)

    def _spending(self, period: _Period, database: sqlite3.Connection) -> PeriodSpending:
        settled, reserved = _sums(period, database)
        requests, tokens, millionths = (
            None if bound is None else max(0, bound - sum(amounts))
            for bound, *amounts in zip(self._bounds[period.name], settled, reserved, strict=True)
        )
        money = None if millionths is None else money_of(millionths)
        return PeriodSpending(period.name, period.end, settled, reserved, requests, tokens, money)

    def _find(self, database: sqlite3.Connection, reservation: Reservation) -> tuple[str, int, int]:
        row: tuple[str, int, int] | None = database.execute(
            "SELECT state, tokens, millionths FROM attempts WHERE id = ?", (reservation.id,)
        ).fetchone()
        if row is None:
            raise InvalidRequestError(f"the budget {self._path} knows no attempt {reservation.id}; settle it where it was reserved")
        return row

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All that happens within becomes durable together, or, if an error is raised, not at all. Others wait meanwhile."""
        uri = f"{self._path.as_uri()}?mode=rw"  # a file that has vanished is an error, and not a fresh budget
        with _explained(self._path), closing(sqlite3.connect(uri, uri=True, timeout=_WAIT_S, isolation_level=None)) as database:
            _make_durable(database)
            database.execute("BEGIN IMMEDIATE")
            _check_version(database, self._path)
            yield database
            database.execute("COMMIT")


class _Period(NamedTuple):
    name: Literal["day", "month"]
    start: datetime
    end: datetime


def _day(now: int) -> _Period:
    start = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0)
    return _Period("day", start, start + timedelta(days=1))


def _month(now: int) -> _Period:
    start = _day(now).start.replace(day=1)
    return _Period("month", start, (start + timedelta(days=31)).replace(day=1))


def _sums(period: _Period, database: sqlite3.Connection) -> tuple[Usage, Usage]:
    """What is settled, and what is reserved. No attempt is later than now, so those since the start are those of the period."""
    start = int(period.start.timestamp())
    settled, reserved = (Usage(*database.execute(_SUM, (start, state)).fetchone()) for state in ("settled", "reserved"))
    return settled, reserved


def was_begun(path: Path) -> bool:
    """Whether there is a budget, or was one, whose journal was left."""
    return os.path.lexists(path) or _journal(path).exists()


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}-journal")


def _make_private(path: Path) -> None:
    """Have a file there that only its owner can read: the one that is, or a new one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.path.lexists(path):
        _create(path)
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):  # a link may lead to where another one writes
        raise RecordError(f"{path} is no regular file; give the budget a path of its own, not a link or a folder")
    if stat.S_IMODE(mode) & 0o077:
        path.chmod(0o600)


def _create(path: Path) -> None:
    """Make the file beside its place and move it there, so that it is whole once it is seen."""
    import fcntl  # not on every system that imports this package

    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # of several processes that start together, one makes it
        if os.path.lexists(path):
            return
        if (journal := _journal(path)).exists():
            raise RecordError(
                f"{path} was deleted, but {journal.name} was not; put it back, or move the journal away to begin a new budget"
            )
        new = path.with_name(f".{path.name}.new")
        for left in (new, _journal(new)):  # of a process that was killed here
            left.unlink(missing_ok=True)
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(new, isolation_level=None)) as database:
            _make_durable(database)
            for statement in ("BEGIN", _CREATE, _INDEX):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {_APPLICATION}")
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            database.execute("COMMIT")
        new.rename(path)
        os.fsync(folder)
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)  # a process forked meanwhile would hold it on
        os.close(folder)


def _make_durable(database: sqlite3.Connection) -> None:
    """A commit survives a power cut. That takes EXTRA: after FULL alone the deleted journal may come back, and undo it. No write-ahead log:
    it would save milliseconds before a call of seconds, for two more files and shared memory."""
    for setting in ("journal_mode = DELETE", "synchronous = EXTRA", "fullfsync = ON"):
        database.execute(f"PRAGMA {setting}")


def _check_version(database: sqlite3.Connection, path: Path) -> None:
    application, version = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if application != _APPLICATION:
        raise RecordError(f"{path} is no budget of edgelm, or was emptied; put it back, or move it away to begin a new budget")
    if version != SCHEMA_VERSION:
        raise RecordError(f"the budget {path} is of version {version}, but this edgelm knows version {SCHEMA_VERSION}; update edgelm")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of SQLite and of the system, as edgelm's."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise BusyError(f"the budget {path} was held by other processes for {_WAIT_S:.0f} seconds; try again later") from error
        raise RecordError(f"the budget {path} cannot be used ({error}); check the file, its folder and the disk") from error
    except sqlite3.DatabaseError as error:
        raise RecordError(
            f"the budget {path} is damaged, or no budget of edgelm ({error}); put a sound copy back, or move it away to begin a new one"
        ) from error
