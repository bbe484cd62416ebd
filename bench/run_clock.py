"""When a record began: the origin of its times, its number, and by how much the wall clock moved since."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class RunClock:
    """The start of a run.

    Attributes:
        id: 12 hexadecimal digits, made at random.
        started: wall clock, ISO 8601 with its offset from UTC.
        origin: the same moment by `time.perf_counter`, the clock of all times in a record.
        wall_s: the same moment by `time.time`.
    """

    id: str
    started: str
    origin: float
    wall_s: float

    @classmethod
    def start(cls) -> RunClock:
        """Begin now."""
        now = datetime.now().astimezone()
        return cls(secrets.token_hex(6), now.isoformat(timespec="milliseconds"), time.perf_counter(), now.timestamp())

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.origin

    @property
    def step_s(self) -> float:
        """By how much the wall clock moved against the monotonic one: it was set, or the machine slept."""
        return time.time() - self.wall_s - self.seconds
