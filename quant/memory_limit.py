"""A bound on the memory of work that can be resumed."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm.errors import InsufficientMemoryError


@dataclass(frozen=True)
class MemoryLimit:
    """How much may be resident.

    Attributes:
        max_bytes: of the whole process.
        lighter: what would take less (", or choose ..."); "" where nothing would.
    """

    max_bytes: int
    lighter: str = ""

    def check(self) -> None:
        """To be called after each step whose result is kept.

        Raises:
            InsufficientMemoryError: more is resident.
        """
        import psutil

        used = psutil.Process().memory_info().rss
        if used > self.max_bytes:
            raise InsufficientMemoryError(
                f"{used / 1e6:,.0f} MB are in use, more than the {self.max_bytes / 1e6:,.0f} MB allowed; run the same command again with a "
                f"larger --max-memory, and it goes on from here{self.lighter}"
            )
