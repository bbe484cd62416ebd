"""A neighbour that wants a core: one process that spins for as long as a measurement lasts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# It looks from time to time whether its parent still lives, so that it cannot outlast a measurement that was killed.
_SPIN = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy_neighbour(wanted: bool = True) -> Iterator[None]:
    """Run one spinning process inside the `with` block, if wanted."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", _SPIN])
    try:
        yield
    finally:
        process.kill()
        process.wait()
