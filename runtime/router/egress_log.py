"""A log of everything that left the device: JSON lines, only ever appended to, each chained to the one before by SHA-256.

Each line is one object in canonical JSON: ASCII, sorted keys, no spaces, no floats. It holds `seq` (1 for the first), `time` (UTC), `prev`
(SHA-256 of the line before, without its end; 64 zeros for the first), `kind`, the fields of that kind, and `hash` (SHA-256 of the rest).

A record is on the disk before `append` returns, so what is sent only then is always in the log. A line without an end was being written
when its process died, and nobody acted upon it: the next record takes its place, and notes its size and SHA-256 as `torn`.

Beside the log, NAME.head holds number and SHA-256 of the last line, so that lines cut off the end are missed. It is written after the
line: it may be behind by the records of processes that died in between, and is never ahead. Whoever can write both files can forge both;
only a head that was noted elsewhere tells.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, NoReturn, Protocol

from edgelm.errors import InvalidRequestError, RecordError

MOST_LINE_BYTES = 32 << 20
"""Of one line: more than a request as large as the server takes, with its body."""

ProblemKind = Literal["changed", "malformed", "removed", "inserted", "swapped", "replaced", "cut", "torn", "head"]

_START = "0" * 64
_OWN = frozenset({"seq", "time", "prev", "hash", "torn"})
_ADVICE = "see `edgelm route verify`; move the log and its .head away together to begin a new one"


class Entry(Protocol):
    """What a record is about. Its kind and fields go into the line."""

    kind: ClassVar[str]

    def to_json(self, keeps_bodies: bool) -> dict[str, Any]:
        """Fields of text, whole numbers, booleans, None, lists and objects; none called seq, time, prev, hash, kind or torn."""


@dataclass(frozen=True)
class Sent:
    """An attempt that is about to be sent.

    Attributes:
        request: tells the request from others; several attempts may belong to it.
        endpoint: its origin, as "https://name".
        level: of privacy, which the router has found.
        reason: why it was not answered here.
        attempt: 1 for the first.
        body: as it will be sent; only its SHA-256 and size are kept, unless the log keeps bodies.
        replaced: how many entities of each kind were replaced in it.
        reserved_tokens, reserved_money: its worst case.
    """

    kind: ClassVar[str] = "sent"

    request: str
    endpoint: str
    model: str
    level: str
    reason: str
    attempt: int
    body: bytes = field(repr=False)
    replaced: Mapping[str, int]
    reserved_tokens: int
    reserved_money: Decimal

    def to_json(self, keeps_bodies: bool) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in ("request", "endpoint", "model", "level", "reason", "attempt", "reserved_tokens")}
        fields |= {"replaced": dict(self.replaced), "reserved_money": f"{self.reserved_money:f}"}
        fields |= {"body_sha256": _sha256(self.body), "body_bytes": len(self.body)}
        return fields | ({"body": self.body.decode("utf-8", "surrogateescape")} if keeps_bodies else {})


@dataclass(frozen=True)
class Ended:
    """How an attempt ended.

    Attributes:
        request, attempt: as in its Sent.
        outcome: in a word, such as "answered", "timeout" or "refused".
        status: of HTTP; None without an answer.
        tokens, cost: what was settled; None if it is not known.
        answer_sha256, answer_bytes: of the answer's body, as far as it came.
    """

    kind: ClassVar[str] = "ended"

    request: str
    attempt: int
    outcome: str
    status: int | None
    tokens: int | None
    cost: Decimal | None
    milliseconds: int
    answer_sha256: str
    answer_bytes: int

    def to_json(self, keeps_bodies: bool) -> dict[str, Any]:  # noqa: ARG002  (an answer has not left the device)
        return dict(vars(self)) | {"cost": None if self.cost is None else f"{self.cost:f}"}


@dataclass(frozen=True)
class Refused:
    """A request that a rule has kept here.

    Attributes:
        endpoint: where it would have gone; None if it did not come to that.
        reason: the rule, and what it has found, without any text of the request.
    """

    kind: ClassVar[str] = "refused"

    request: str
    endpoint: str | None
    level: str
    reason: str

    def to_json(self, keeps_bodies: bool) -> dict[str, Any]:  # noqa: ARG002  (nothing was sent)
        return dict(vars(self))


@dataclass(frozen=True)
class Head:
    """Number and SHA-256 of a line, which say all that the log holds up to there. Written as NUMBER:SHA256."""

    seq: int = 0
    sha256: str = _START

    def __str__(self) -> str:
        return f"{self.seq}:{self.sha256}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """
        Raises:
            InvalidRequestError: it is no head.
        """
        if not re.fullmatch(r"0:0{64}|[1-9][0-9]{0,17}:[0-9a-f]{64}", text):
            raise InvalidRequestError(f"{text!r:.100} is no head of a log; give NUMBER:SHA256, as `edgelm route verify` prints it")
        seq, _, sha256 = text.partition(":")
        return cls(int(seq), sha256)


@dataclass(frozen=True)
class Record:
    """One line.

    Attributes:
        time: UTC, ISO 8601.
        fields: those of its kind, and `torn`, if what stood in its place was torn.
        line: its bytes, without the end.
    """

    seq: int
    time: str
    kind: str
    fields: Mapping[str, Any]
    prev: str
    line: bytes = field(repr=False)

    @property
    def head(self) -> Head:
        """The log's head, as long as this is its last line."""
        return Head(self.seq, _sha256(self.line))


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
        fields = {"kind": entry.kind, **entry.to_json(self._keeps_bodies)}
        if taken := _OWN & fields.keys():
            raise InvalidRequestError(f"a record has its own {', '.join(sorted(taken))}; name the fields of {entry.kind!r} otherwise")
        with _explained(self._path):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self._path) as file:
                last, n_whole, torn = self._end(file)
                if torn:
                    fields["torn"] = {"bytes": len(torn), "sha256": _sha256(torn)}
                record = self._next(last, fields)
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
        head = _read_head(self._path)
        size = os.fstat(file).st_size
        if head is None:
            if size:
                raise RecordError(f"{head_path(self._path)} is missing; {_ADVICE}")
            _write_head(self._path, Head())
            _sync_folder(self._path.parent)
            return Head(), 0, b""
        line, torn = _last_line(file, size)
        try:
            last = Head() if line is None else _decode(line).head
        except _BrokenLineError as error:
            raise RecordError(f"the last whole line of {self._path} is broken: {error}; {_ADVICE}") from error
        if last.seq < head.seq or (last.seq == head.seq and last != head):
            raise RecordError(f"the log {self._path} ends at {last}, but has had {head}; {_ADVICE}")
        return last, size - len(torn), torn

    def _next(self, last: Head, fields: dict[str, Any]) -> Record:
        now = self._clock().astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
        fields |= {"seq": last.seq + 1, "time": f"{now}Z", "prev": last.sha256}
        try:
            return _decode(_canonical(fields | {"hash": _sha256(_canonical(fields))}))
        except (TypeError, ValueError, RecursionError) as error:
            advice = "give plain JSON without floats, or less of it"
            raise InvalidRequestError(f"the fields of {fields['kind']!r} make no record: {error}; {advice}") from error


def read(path: Path) -> Iterator[Record]:
    """The records, from the first on; those appended meanwhile are not among them. Each line is checked, but not the chain (see verify).

    Raises:
        RecordError: the log cannot be read, or a line is broken.
    """
    with _explained(path), _snapshot(path) as (file, size, _):
        for number, line in enumerate(_lines(file, size), 1):
            if line.endswith(b"\n") or len(line) > MOST_LINE_BYTES:  # what is torn is no record
                try:
                    yield _decode(line[:-1])
                except _BrokenLineError as error:
                    raise RecordError(f"line {number} of {path} is broken: {error}; see `edgelm route verify`") from error


def verify(path: Path, head: Head | None = None) -> Verification:
    """Check the whole log, holding two lines at a time.

    Args:
        head: noted elsewhere earlier; its line must be there, unchanged.

    Raises:
        RecordError: the log cannot be read.
    """
    with _explained(path), _snapshot(path) as (file, size, kept):
        heads = [one for one in (head, kept) if isinstance(one, Head)]
        longest = max((one.seq for one in heads), default=0)
        before = last = Head()
        for line, following in pairwise(chain(_lines(file, size), [b""])):
            problem = _problem(line, following, last, longest)
            here = Head(last.seq + 1, _sha256(line[:-1]))
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
        record = _decode(line[:-1])
    except _BrokenLineError as error:
        return Problem(number, error.kind, str(error))
    if (record.seq, record.prev) == (number, last.sha256):
        return None
    if record.seq < number:
        return Problem(number, "inserted", f"record {record.seq} stands here for the second time: a line was put in, here or just before")
    try:
        after = _decode(following[:-1])
    except _BrokenLineError:
        after = None
    if record.seq > number:
        if after is not None and after.seq == number:
            return Problem(number, "swapped", f"record {record.seq} stands before record {number}")
        return Problem(number, "removed", f"record {record.seq} stands here: {record.seq - number} before it are gone")
    if last.seq and (after is None or after.prev == record.head.sha256):  # the records after the change are chained to each other
        return Problem(last.seq, "replaced", f"its own hash fits, but record {number} was chained to another one")
    return Problem(number, "replaced", "its own hash fits, but it is not chained to the record before")


class _BrokenLineError(ValueError):
    def __init__(self, kind: ProblemKind, message: str) -> None:
        self.kind: ProblemKind = kind
        super().__init__(message)


def _decode(line: bytes) -> Record:
    """A record from its line, if the line is what `append` writes, byte by byte."""
    if len(line) >= MOST_LINE_BYTES:
        raise _BrokenLineError("malformed", f"it is longer than the {MOST_LINE_BYTES:,} bytes that a line may have")
    try:
        content = json.loads(line.decode("ascii"), object_pairs_hook=_unique, parse_float=_no_number, parse_constant=_no_number)
    except _BrokenLineError:
        raise
    except (ValueError, RecursionError) as error:
        raise _BrokenLineError("malformed", f"it is no JSON ({error})") from error
    own = {"seq": int, "time": str, "kind": str, "prev": str, "hash": str}
    if not isinstance(content, dict) or any(type(content.get(name)) is not kind for name, kind in own.items()):
        raise _BrokenLineError("malformed", f"it is no record, which has {', '.join(own)}")
    rest = {name: value for name, value in content.items() if name != "hash"}
    if _sha256(_canonical(rest)) != content["hash"]:
        raise _BrokenLineError("changed", "its hash does not fit what it says: a field, or the hash, was changed")
    if _canonical(content) != line:
        raise _BrokenLineError("changed", "it says the same, but is written otherwise than the log writes it")
    fields = {name: value for name, value in rest.items() if name not in own}
    return Record(content["seq"], content["time"], content["kind"], fields, content["prev"], line)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        name = next(name for name in content if sum(name == other for other, _ in pairs) > 1)
        raise _BrokenLineError("malformed", f"the key {name!r:.100} stands in it twice")
    return content


def _no_number(text: str) -> NoReturn:
    raise _BrokenLineError("malformed", f"{text:.100} is no whole number, and no other is in a record")


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Lines with their ends, up to so many bytes of the file; of one that is too long, its beginning."""
    while line := file.readline(min(size, MOST_LINE_BYTES + 1)):
        size -= len(line)
        yield line


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
        fcntl.flock(file, fcntl.LOCK_EX)
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode) or not os.path.samestat(state, path.lstat()):
            raise RecordError(f"{path} is no regular file, or was moved just now; give the log a path of its own")
        if stat.S_IMODE(state.st_mode) & 0o077:
            os.fchmod(file, 0o600)
        yield file
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile would hold it on
        os.close(file)


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
                kept: Head | Problem = _read_head(path) or Problem(None, "head", f"{head_path(path)} is missing")
            except RecordError as error:
                kept = Problem(None, "head", str(error))
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
        yield file, size, kept


def head_path(path: Path) -> Path:
    """The file beside a log that holds its head."""
    return path.with_name(f"{path.name}.head")


def _read_head(path: Path) -> Head | None:
    """
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
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(f"the log {path} cannot be used ({error}); make room, and give a file, no link, that may be written") from error
