"""A log of everything that left the device: JSON lines, only ever appended to, each chained to the one before by SHA-256.

A record is on the disk before `append` returns, so what is sent only then is always in the log. A line without an end was being written
when its process died, and nobody acted upon it: the next record takes its place, and notes its size and SHA-256 as `torn`.

Beside the log, NAME.head holds number and SHA-256 of the last line, so that lines cut off the end are missed. It is written after the
line: it may be behind by the records of processes that died in between, and is never ahead. Whoever can write both files can forge both;
only a head that was noted elsewhere tells.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from edgelm.errors import BusyError, InvalidRequestError, RecordError
from edgelm.runtime.router.egress_record import (
    MOST_LINE_BYTES,
    BrokenLineError,
    Entry,
    Head,
    Record,
    decode,
    fields_of,
    record_after,
    sha256_of,
)

_ADVICE = "see `edgelm route verify`; move the log and its .head away together to begin a new one"


_WAIT_S = 10.0
_PAUSE_S = 0.005


class EgressLog:
    """Appends to a log, which any number of threads and processes may do at once.

    Args:
        path: made by the first append, for its owner only, with its folder. A link there is refused, for it may lead to where others read.
        keeps_bodies: whether what is sent is kept itself, too.
        clock: the time now.
    """

    def __init__(self, path: Path, keeps_bodies: bool = False, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = path.absolute()
        self._keeps_bodies = keeps_bodies
        self._clock = clock

    def append(self, entry: Entry) -> Record:
        """Add a record. It is on the disk when this returns; unless it returns, nothing may be sent.

        Raises:
            RecordError: the log cannot be written, or its end is broken; nothing is appended to a broken log.
            InvalidRequestError: the entry has fields that no record can have, or is too large.
        """
        fields = fields_of(entry, self._keeps_bodies)
        with explained(self._path):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self._path) as file:
                last, n_whole, torn = self._end(file)
                if torn:
                    fields["torn"] = {"bytes": len(torn), "sha256": sha256_of(torn)}
                now = self._clock().astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
                record = record_after(last, f"{now}Z", fields)
                if torn:
                    os.ftruncate(file, n_whole)
                line = record.line + b"\n"
                n_written = os.write(file, line)
                if n_written < len(line):
                    raise RecordError(f"the log {self._path} took {n_written:,} of {len(line):,} bytes; make room on the disk")
                os.fsync(file)
                _write_head(self._path, record.head)
        return record

    def _end(self, file: int) -> tuple[Head, int, bytes]:
        """The last whole line, the bytes up to its end, and what was torn behind it. A new log is begun."""
        head = read_head(self._path)
        size = os.fstat(file).st_size
        if head is None:
            if size:
                raise RecordError(f"{head_path(self._path)} is missing; {_ADVICE}")
            _write_head(self._path, Head())
            _sync_folder(self._path.parent)
            return Head(), 0, b""
        line, torn = _last_line(file, size)
        try:
            last = Head() if line is None else decode(line).head
        except BrokenLineError as error:
            raise RecordError(f"the last whole line of {self._path} is broken: {error}; {_ADVICE}") from error
        if last.seq < head.seq or (last.seq == head.seq and last != head):
            raise RecordError(f"the log {self._path} ends at {last}, but has had {head}; {_ADVICE}")
        return last, size - len(torn), torn


def _last_line(file: int, size: int) -> tuple[bytes | None, bytes]:
    """The last line that has an end, without it (None without one), and what stands behind it."""
    n = 0
    while n < size:
        n = min(size, 4 * n or 1 << 14)
        whole, end, torn = os.pread(file, n, size - n).rpartition(b"\n")
        if end and (b"\n" in whole or n == size):
            return whole.rpartition(b"\n")[2], torn
        if n > 2 * MOST_LINE_BYTES:
            raise RecordError(f"the last line is longer than {MOST_LINE_BYTES:,} bytes; {_ADVICE}")
    return None, os.pread(file, size, 0)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The log's file, which no other thread or process writes or looks at meanwhile."""
    import fcntl  # not on every system that imports this package

    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        _lock(file, path)
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode) or not os.path.samestat(state, path.lstat()):
            raise RecordError(f"{path} is no regular file, or was moved just now; give the log a path of its own")
        if stat.S_IMODE(state.st_mode) & 0o077:
            os.fchmod(file, 0o600)
        yield file
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile would hold it on
        os.close(file)


def _lock(file: int, path: Path) -> None:
    """Wait for the others, but not for ever: one of them may be suspended, or another program that only reads."""
    import fcntl

    end = time.monotonic() + _WAIT_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise BusyError(f"another process has held the log {path} for {_WAIT_S:g} s; end it, or wait") from None
        time.sleep(_PAUSE_S)


def head_path(path: Path) -> Path:
    """The file beside a log that holds its head."""
    return path.with_name(f"{path.name}.head")


def read_head(path: Path) -> Head | None:
    """The head that is kept of a log; None where there is none.

    Raises:
        RecordError: there is one, but it says nothing.
    """
    try:
        text = head_path(path).read_text(encoding="ascii")
        if not text.endswith("\n"):
            raise InvalidRequestError("it has no end")
        return Head.parse(text[:-1])
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RecordError(f"{head_path(path)} is broken ({error}); {_ADVICE}") from error


def _write_head(path: Path, head: Head) -> None:
    target = head_path(path)
    new = target.with_name(f"{target.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(f"{head}\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(target)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Errors of the system, as edgelm's."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"the log {path} cannot be used ({error}); make room, and give a file, no link, that may be written") from error
