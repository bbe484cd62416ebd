"""A meter that is one file with a number: a counter in microjoules, or a power in microwatts."""

from __future__ import annotations

from pathlib import Path

from edgelm.bench.power.base import Reading
from edgelm.bench.power.sysfs import read_number
from edgelm.bench.record import MeterInfo

_MICRO = 1e-6


class FileMeter:
    """Reads the file anew each time.

    Args:
        path: of microjoules or microwatts, as the info's quantity says.
        wrap_j: joules at which a counter begins anew; None if it does not.
    """

    def __init__(self, info: MeterInfo, path: Path, wrap_j: float | None = None) -> None:
        self.info = info
        self.wrap_j = wrap_j
        self._path = path

    def read(self) -> Reading:
        """Joules or watts now.

        Raises:
            MeterError: the file is gone, may not be read, or holds no number.
        """
        return Reading(read_number(self._path) * _MICRO)

    def close(self) -> None:
        """Nothing is held open."""
