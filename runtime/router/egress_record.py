"""The records of the log of what left the device, and how they are written.

Each is one line, an object in canonical JSON: ASCII, sorted keys, no spaces, no floats. It holds `seq` (1 for the first), `time` (UTC),
`prev` (SHA-256 of the line before, without its end; 64 zeros for the first), `kind`, the fields of that kind, and `hash` (SHA-256 of the
rest).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, Literal, NoReturn, Protocol

from edgelm.errors import InvalidRequestError

MOST_LINE_BYTES = 32 << 20
"""Of one line: more than a request as large as the server takes, with its body."""

_START = "0" * 64
_OWN = frozenset({"seq", "time", "prev", "hash", "torn"})


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
        fields |= {"body_sha256": sha256_of(self.body), "body_bytes": len(self.body)}
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
        return Head(self.seq, sha256_of(self.line))


class BrokenLineError(ValueError):
    """A line is not what the log writes.

    Attributes:
        kind: changed after it was written, or no record at all.
    """

    def __init__(self, kind: Literal["changed", "malformed"], message: str) -> None:
        self.kind: Literal["changed", "malformed"] = kind
        super().__init__(message)


def fields_of(entry: Entry, keeps_bodies: bool) -> dict[str, Any]:
    """Its kind and fields.

    Raises:
        InvalidRequestError: a field has the name of one that every record has.
    """
    fields = {"kind": entry.kind, **entry.to_json(keeps_bodies)}
    if taken := _OWN & fields.keys():
        raise InvalidRequestError(f"a record has its own {', '.join(sorted(taken))}; name the fields of {entry.kind!r} otherwise")
    return fields


def record_after(last: Head, time: str, fields: Mapping[str, Any]) -> Record:
    """The record of an entry's fields that is chained to the last one.

    Raises:
        InvalidRequestError: no record can hold the fields, or not so much of them.
    """
    whole = {**fields, "seq": last.seq + 1, "time": time, "prev": last.sha256}
    try:
        return decode(_canonical(whole | {"hash": sha256_of(_canonical(whole))}))
    except (TypeError, ValueError, RecursionError) as error:
        advice = "give plain JSON without floats, or less of it"
        raise InvalidRequestError(f"the fields of {fields['kind']!r} make no record: {error}; {advice}") from error


def decode(line: bytes) -> Record:
    """A record from its line, without the end, if the line is what the log writes, byte by byte.

    Raises:
        BrokenLineError: it is not.
    """
    if len(line) >= MOST_LINE_BYTES:
        raise BrokenLineError("malformed", f"it is longer than the {MOST_LINE_BYTES:,} bytes that a line may have")
    try:
        content = json.loads(line.decode("ascii"), object_pairs_hook=_unique, parse_float=_no_number, parse_constant=_no_number)
    except BrokenLineError:
        raise
    except (ValueError, RecursionError) as error:
        raise BrokenLineError("malformed", f"it is no JSON ({error})") from error
    own = {"seq": int, "time": str, "kind": str, "prev": str, "hash": str}
    if not isinstance(content, dict) or any(type(content.get(name)) is not kind for name, kind in own.items()):
        raise BrokenLineError("malformed", f"it is no record, which has {', '.join(own)}")
    rest = {name: value for name, value in content.items() if name != "hash"}
    if sha256_of(_canonical(rest)) != content["hash"]:
        raise BrokenLineError("changed", "its hash does not fit what it says: a field, or the hash, was changed")
    if _canonical(content) != line:
        raise BrokenLineError("changed", "it says the same, but is written otherwise than the log writes it")
    fields = {name: value for name, value in rest.items() if name not in own}
    return Record(content["seq"], content["time"], content["kind"], fields, content["prev"], line)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        name = next(name for name in content if sum(name == other for other, _ in pairs) > 1)
        raise BrokenLineError("malformed", f"the key {name!r:.100} stands in it twice")
    return content


def _no_number(text: str) -> NoReturn:
    raise BrokenLineError("malformed", f"{text:.100} is no whole number, and no other is in a record")


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


def sha256_of(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()
