"""How much memory is free for this process, and a check before something large is loaded."""

from __future__ import annotations

from pathlib import Path

from edgelm.backends.cgroup import PROC, SYS, memory_headroom
from edgelm.errors import InsufficientMemoryError


def available_memory(sys_root: Path = SYS, proc_root: Path = PROC) -> int:
    """Bytes that can be allocated without swapping: the machine's, cut to the limit of the process's control groups."""
    import psutil

    machine = int(psutil.virtual_memory().available)
    headroom = memory_headroom(sys_root, proc_root)
    return machine if headroom is None else min(machine, headroom)


def require_memory(needed: int, what: str) -> None:
    """Check that `needed` bytes are free for `what` ("the weights of model.gguf").

    Raises:
        InsufficientMemoryError: fewer bytes are free.
    """
    available = available_memory()
    if needed > available:
        raise InsufficientMemoryError(
            f"{what} needs {needed / 1e6:,.0f} MB of memory, but {available / 1e6:,.0f} MB are available; "
            "close other programs, raise the container's limit, or use a smaller model or a smaller n_ctx"
        )
