"""Logs of what left the device, and every way to tamper with one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

from edgelm.runtime.router.egress_log import EgressLog
from edgelm.runtime.router.egress_record import MOST_LINE_BYTES, Ended, Head, Sent
from edgelm.runtime.router.egress_verify import verify

BODY = '{"messages": "Grüße"}\n'.encode()
SENT = Sent("r1", "https://cloud.example", "big", "public", "too hard", 1, BODY, {"EMAIL": 2}, 1000, Decimal("0.0012"))
ENDED = Ended("r1", 1, "answered", 200, 900, Decimal("0.001"), 1234, hashlib.sha256(b"yes").hexdigest(), 3)


@dataclass(frozen=True)
class Note:
    """An entry of a kind that the log does not know."""

    kind: ClassVar[str] = "note"

    fields: dict[Any, Any]

    def to_json(self, keeps_bodies: bool) -> dict[str, Any]:
        assert not keeps_bodies
        return self.fields


def head_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def fill(path: Path, n: int = 6) -> list[bytes]:
    """A log of so many records; its lines with their ends."""
    log = EgressLog(path)
    for number in range(n):
        log.append(Note({"number": number}))
    return path.read_bytes().splitlines(keepends=True)


def forged(line: bytes, **changes: Any) -> bytes:
    """A line with other fields, whose own hash fits again."""
    content = json.loads(line) | changes
    del content["hash"]

    def canonical() -> bytes:
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    content["hash"] = hashlib.sha256(canonical()).hexdigest()
    return canonical() + b"\n"


def found(path: Path, head: Head | None = None) -> tuple[int | None, str] | None:
    problem = verify(path, head).problem
    return None if problem is None else (problem.line, problem.kind)


Lines = list[bytes]
CHANGES: dict[str, tuple[Callable[[Lines], Lines], int, str]] = {
    "a field": (lambda x: [*x[:2], x[2].replace(b'"number":2', b'"number":7'), *x[3:]], 3, "changed"),
    "a space": (lambda x: [*x[:2], x[2].replace(b'"number":2', b'"number": 2'), *x[3:]], 3, "changed"),
    "an escape": (lambda x: [*x[:2], x[2].replace(b'"note"', b'"\\u006eote"'), *x[3:]], 3, "changed"),
    "no JSON": (lambda x: [*x[:2], b"{\n", *x[3:]], 3, "malformed"),
    "an empty line": (lambda x: [*x[:2], b"\n", *x[2:]], 3, "malformed"),
    "no record": (lambda x: [*x[:2], b"[]\n", *x[3:]], 3, "malformed"),
    "deep": (lambda x: [*x[:2], b"[" * 100_000 + b"\n", *x[3:]], 3, "malformed"),
    "a key twice": (lambda x: [*x[:2], x[2].replace(b'"number":2', b'"number":2,"number":2'), *x[3:]], 3, "malformed"),
    "a number": (lambda x: [*x[:2], x[2].replace(b'"number":2', b'"number":2.0'), *x[3:]], 3, "malformed"),
    "too long": (lambda x: [*x[:2], b" " * MOST_LINE_BYTES + x[2], *x[3:]], 3, "malformed"),
    "the first removed": (lambda x: x[1:], 1, "removed"),
    "one removed": (lambda x: [*x[:2], *x[3:]], 3, "removed"),
    "two removed": (lambda x: [*x[:2], *x[4:]], 3, "removed"),
    "swapped": (lambda x: [*x[:2], x[3], x[2], *x[4:]], 3, "swapped"),
    "the last swapped": (lambda x: [*x[:4], x[5], x[4]], 5, "swapped"),
    "one twice": (lambda x: [*x[:3], x[2], *x[3:]], 4, "inserted"),
    "an old one again": (lambda x: [*x[:5], x[1], x[5]], 6, "inserted"),
    "a forged one put in": (lambda x: [*x[:2], forged(x[2], number=9), *x[2:]], 4, "inserted"),
    "the first forged": (lambda x: [forged(x[0], number=9), *x[1:]], 1, "replaced"),
    "one forged": (lambda x: [*x[:2], forged(x[2], number=9), *x[3:]], 3, "replaced"),
    "one forged with another prev": (lambda x: [*x[:2], forged(x[2], prev="5" * 64), *x[3:]], 3, "replaced"),
    "the last forged": (lambda x: [*x[:5], forged(x[5], number=9)], 6, "replaced"),
    "the last cut": (lambda x: x[:5], 6, "cut"),
    "all cut": (lambda _: [], 1, "cut"),
    "half of the last cut": (lambda x: [*x[:5], x[5][:50]], 6, "cut"),
    "the end of the last cut": (lambda x: [*x[:5], x[5][:-1]], 6, "cut"),
    "half of one more": (lambda x: [*x, x[5][:50]], 7, "torn"),
}
