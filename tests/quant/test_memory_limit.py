"""A bound on resident memory."""

from __future__ import annotations

import psutil
import pytest

from edgelm.errors import InsufficientMemoryError
from edgelm.quant.memory_limit import MemoryLimit


def test_memory_in_use_is_held_against_the_limit() -> None:
    used = psutil.Process().memory_info().rss
    MemoryLimit(2 * used).check()
    with pytest.raises(InsufficientMemoryError, match=r"more than the 10 MB allowed; .*larger --max-memory, .* from here, or less$"):
        MemoryLimit(10_000_000, ", or less").check()
