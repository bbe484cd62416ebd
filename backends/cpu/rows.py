"""How the rows of an operation are shared among the threads."""

from __future__ import annotations

from edgelm.backends.cpu.codes import inline


@inline
def share_rows(n_rows, tid, nt):
    """First row, last row, and what to add to a row for its slot.

    Several rows are divided. A single row is computed by every thread for itself, in the slot of its number,
    which costs less than the meeting that sharing would need.
    """
    if n_rows == 1:
        return 0, 1, tid
    return n_rows * tid // nt, n_rows * (tid + 1) // nt, 0
