"""What each thread of the team does inside compiled code: wait for a job, run its operations, meet the others."""

from __future__ import annotations

from edgelm.backends.cpu.codes import inline
from edgelm.backends.cpu.records import ALWAYS, CREW, IF_MANY, OP, OP_BYTES, TEAM
from edgelm.backends.cpu.simd import atomic_add, atomic_load, atomic_store, call_kernel, pause, read_i64, yield_core

# Spinning longer than this means that a partner is not running: give the core away instead. Some 50 microseconds.
_SPINS = 1000


@inline
def _meet(team, nt):
    """A barrier: the last to arrive opens the next phase, the others spin for it a bounded while and then yield."""
    phase = atomic_load(team + TEAM.phase)
    if atomic_add(team + TEAM.arrived, 1) == nt - 1:
        atomic_store(team + TEAM.arrived, 0)
        atomic_store(team + TEAM.phase, phase + 1)
        return
    spins = 0
    while atomic_load(team + TEAM.phase) == phase:
        spins += 1
        if spins < _SPINS:
            pause()
        else:
            if spins == _SPINS:
                atomic_add(team + TEAM.late, 1)
            yield_core()


@inline
def _run(team, tid, nt):
    op, job = read_i64(team + TEAM.tape), read_i64(team + TEAM.job)
    for _ in range(read_i64(team + TEAM.n_ops)):
        call_kernel(read_i64(op + OP.kernel), op, job, tid, nt)
        meet = read_i64(op + OP.meet)
        if nt > 1 and (meet == ALWAYS or (meet == IF_MANY and read_i64(job + read_i64(op + OP.rows)) > 1)):
            _meet(team, nt)
        op += OP_BYTES
    if nt > 1:
        _meet(team, nt)


def run(team, call, tid, nt):
    """Call the others to the job that was written into the record, and do thread 0's part of it."""
    atomic_store(team + TEAM.call, call)
    _run(team, tid, nt)
    return 0


def serve(team, seen, tid, patience):
    """Take part in jobs as they are announced. Returns the last call that was seen, once one comes for others or none for a while."""
    spins = 0
    while spins < patience:
        call = atomic_load(team + TEAM.call)
        if call == seen:
            pause()
            spins += 1
        elif tid < call % CREW:
            _run(team, tid, call % CREW)
            seen = call
            spins = 0
        else:
            return call
    return seen
