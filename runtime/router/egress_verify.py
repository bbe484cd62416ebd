"""Reading the log of what left the device, and finding where it was changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO, Literal

from edgelm.errors import RecordError
from edgelm.runtime.router.egress_log import explained, head_path, read_head
from edgelm.runtime.router.egress_record import MOST_LINE_BYTES, BrokenLineError, Head, Record, decode, sha256_of

ProblemKind = Literal["changed", "malformed", "removed", "inserted", "swapped", "replaced", "cut", "torn", "head"]


@dataclass(frozen=True)
class Problem:
    """A place where a log is broken.

    Attributes:
        line: 1 for the first; None for the file of the head.
    """

    line: int | None
    kind: ProblemKind
    message: str


@dataclass(frozen=True)
class Verification:
    """How far a log is whole.

    Attributes:
        n_records: from the first one to the last before the problem.
        head: of these; a person may note it elsewhere.
        problem: the first one; None if all is whole.
    """

    n_records: int
    head: Head
    problem: Problem | None


def read(path: Path) -> Iterator[Record]:
    """The records, from the first on; those appended meanwhile are not among them. Each line is checked, but not the chain (see verify).

    Raises:
        RecordError: the log cannot be read, or a line is broken.
    """
    with explained(path), _snapshot(path) as (file, size, _):
        for number, line in enumerate(_lines(file, size), 1):
            if line.endswith(b"\n") or len(line) > MOST_LINE_BYTES:  # what is torn is no record
                try:
                    yield decode(line[:-1])
                except BrokenLineError as error:
                    raise RecordError(f"line {number} of {path} is broken: {error}; see `edgelm route verify`") from error


def verify(path: Path, head: Head | None = None) -> Verification:
    """Check the whole log, holding two lines at a time.

    Args:
        head: noted elsewhere earlier; its line must be there, unchanged.

    Raises:
        RecordError: the log cannot be read.
    """
    with explained(path), _snapshot(path) as (file, size, kept):
        heads = [one for one in (head, kept) if isinstance(one, Head)]
        longest = max((one.seq for one in heads), default=0)
        before = last = Head()
        for line, following in pairwise(chain(_lines(file, size), [b""])):
            problem = _problem(line, following, last, longest)
            here = Head(last.seq + 1, sha256_of(line[:-1]))
            if problem is None and any(one.seq == here.seq and one != here for one in heads):
                problem = Problem(here.seq, "replaced", "another record stood here when the head was written")
            if problem is not None:
                sound = before if problem.line == last.seq else last
                return Verification(sound.seq, sound, problem)
            before, last = last, here
        problem = kept if isinstance(kept, Problem) else None
        if longest > last.seq:
            problem = Problem(last.seq + 1, "cut", f"the log has had {longest} records; from here on they are gone")
        return Verification(last.seq, last, problem)


def _problem(line: bytes, following: bytes, last: Head, longest: int) -> Problem | None:
    """What is wrong with a line, if anything is; the one after it tells some kinds from others.

    Args:
        longest: records that were there for sure.
    """
    number = last.seq + 1
    if not line.endswith(b"\n") and len(line) <= MOST_LINE_BYTES and number <= longest:
        return Problem(number, "cut", f"the end of this line is gone, and all {longest} records were whole once")
    if not line.endswith(b"\n") and len(line) <= MOST_LINE_BYTES:
        return Problem(number, "torn", "its writer died half way, so nothing was sent for it; the next record will take its place")
    try:
        record = decode(line[:-1])
    except BrokenLineError as error:
        return Problem(number, error.kind, str(error))
    if (record.seq, record.prev) == (number, last.sha256):
        return None
    if record.seq < number:
        return Problem(number, "inserted", f"record {record.seq} stands here for the second time: a line was put in, here or just before")
    try:
        after = decode(following[:-1])
    except BrokenLineError:
        after = None
    if record.seq > number:
        if after is not None and after.seq == number:
            return Problem(number, "swapped", f"record {record.seq} stands before record {number}")
        return Problem(number, "removed", f"record {record.seq} stands here: {record.seq - number} before it are gone")
    if last.seq and (after is None or after.prev == record.head.sha256):  # the records after the change are chained to each other
        return Problem(last.seq, "replaced", f"its own hash fits, but record {number} was chained to another one")
    return Problem(number, "replaced", "its own hash fits, but it is not chained to the record before")


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Lines with their ends, up to so many bytes of the file; of one that is too long, its beginning."""
    while line := file.readline(min(size, MOST_LINE_BYTES + 1)):
        size -= len(line)
        yield line


@contextmanager
def _snapshot(path: Path) -> Iterator[tuple[BinaryIO, int, Head | Problem]]:
    """The log's file, its size and its head as they were at one moment; it may grow while it is read."""
    import fcntl

    if not path.is_file() and path.exists():  # opening a pipe would wait for its writer
        raise RecordError(f"{path} is no regular file; give the path of a log")
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        try:
            size = os.fstat(file.fileno()).st_size
            try:
                kept: Head | Problem = read_head(path) or Problem(None, "head", f"{head_path(path)} is missing")
            except RecordError as error:
                kept = Problem(None, "head", str(error))
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
        yield file, size, kept
