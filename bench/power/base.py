"""The border between a power meter and the arithmetic: a meter reads, and says honestly what it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edgelm.bench.record import MeterInfo


@dataclass(frozen=True)
class Reading:
    """One reading of a meter.

    Attributes:
        value: of an energy meter, its counter in joules, as it stands (wraps not undone); of a power meter, watts.
        stamp: the meter's own time or number of this value, if it has one: the same stamp twice is the same value, not a new one.
    """

    value: float
    stamp: float | None = None


class Meter(Protocol):
    """A power meter that answered when it was opened."""

    @property
    def info(self) -> MeterInfo: ...

    @property
    def wrap_j(self) -> float | None:
        """Joules at which an energy counter begins anew from zero; None if it does not, or is none."""
        ...

    def read(self) -> Reading:
        """Ask the meter now.

        Raises:
            MeterError: it does not answer, may not be read, or answers nonsense.
        """
        ...

    def close(self) -> None:
        """Release it. Closing twice is allowed."""
        ...


@dataclass(frozen=True)
class AbsentMeter:
    """A kind of meter that cannot be used here.

    Attributes:
        name: of the meter or its kind ("rapl").
        reason: what is missing ("no /sys/class/powercap").
        advice: what a person can do about it; "" if nothing.
    """

    name: str
    reason: str
    advice: str = ""
