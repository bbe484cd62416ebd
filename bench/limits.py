"""What a machine can do at most: bytes read from memory and int8 multiplications per second, measured in a few seconds.

Both are upper bounds for an engine, so the best moment counts: another process, or a neighbour on the same host, can only slow one down.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from edgelm.backends.base import Progress
from edgelm.backends.cgroup import SYS
from edgelm.bench.cpu_layout import last_level_cache_bytes, spread
from edgelm.bench.limit_kernels import OPERAND_BYTES, READ_STEP, Compiled, compile_loops
from edgelm.bench.record import Limits
from edgelm.errors import InvalidRequestError, MeasurementError

_CACHES = 4  # the array is so many times as large as the last-level caches: at most a quarter of it can be found there
_LEAST_BYTES = 256 << 20  # for machines that do not tell the size of their cache, or have one behind it that they do not tell of
_READ_S, _MULTIPLY_S = 1.6, 0.5
_WINDOWS = 16  # of time, the best of which counts
_READ_CHUNK = 8 << 20  # bytes between two stamps
_ROUNDS = 100_000  # multiplications between two stamps: below a millisecond


def measure_limits(n_threads: int, progress: Progress | None = None, sys_root: Path = SYS) -> Limits:
    """Measure with n_threads threads, as many as an engine uses.

    Each thread stays on a core of its own, where there are enough; it reads memory that it touched first, so on a machine with several
    memory nodes each reads from its own.

    Raises:
        InvalidRequestError: n_threads is not positive.
        MeasurementError: the memory that is free does not hold an array larger than the caches.
    """
    if n_threads < 1:
        raise InvalidRequestError(f"n_threads is {n_threads}; give 1 or more")
    say = progress or (lambda _line: None)
    loops = compile_loops()
    cpus = spread(n_threads, sys_root)
    cache = last_level_cache_bytes(sys_root)
    threads = "1 thread" if n_threads == 1 else f"{n_threads} threads"
    say(f"memory bandwidth, {threads}")
    reading = _read_rates(loops, n_threads, array_bytes(cache, psutil.virtual_memory().available, n_threads), cpus)
    rates = {}
    for which, (instruction, _) in enumerate(loops.multiply):
        say(f"{instruction.name}, {threads}")
        rates[instruction.name] = _multiply_rates(loops, which, n_threads, cpus)
    best = max(rates, key=lambda name: rates[name].max())
    return Limits(
        n_threads=n_threads,
        bytes_per_s=float(reading.max()),
        median_bytes_per_s=float(np.median(reading)),
        macs_per_s=float(rates[best].max()),
        median_macs_per_s=float(np.median(rates[best])),
        instruction=best,
        cache_bytes=cache,
    )


def merge_limits(measured: Iterable[Limits]) -> tuple[Limits, ...]:
    """The best of several measurements for each number of threads, such as those before and after the engines ran; fewest threads first.

    Both limits are bounds from above, which a busy machine can only lower. For the same reason a number of threads has at least the limits
    of a smaller one: the others could rest.
    """
    merged: list[Limits] = []
    for limits in sorted(measured, key=lambda limits: limits.n_threads):
        known = merged[-1] if merged else limits
        reader = max(known, limits, key=lambda one: one.bytes_per_s)
        multiplier = max(known, limits, key=lambda one: one.macs_per_s)
        best = replace(
            multiplier,
            n_threads=limits.n_threads,
            bytes_per_s=reader.bytes_per_s,
            median_bytes_per_s=reader.median_bytes_per_s,
        )
        if merged and known.n_threads == limits.n_threads:
            merged.pop()
        merged.append(best)
    return tuple(merged)


def array_bytes(cache: int | None, free: int, n_threads: int) -> int:
    """How much memory to read: several times the caches, but no more than half of what is free; a multiple of each thread's step.

    Raises:
        MeasurementError: that would be less than twice the caches.
    """
    wanted = max(_LEAST_BYTES, _CACHES * (cache or 0))
    size = min(wanted, free // 2)
    if size < min(wanted, 2 * (cache or 0)) or size < _LEAST_BYTES // 8:
        raise MeasurementError(
            f"memory bandwidth needs an array well above the caches ({wanted / 1e6:.0f} MB), but {free / 1e6:.0f} MB of memory are free; "
            "close other programs"
        )
    unit = n_threads * READ_STEP
    return size // unit * unit


def _read_rates(loops: Compiled, n_threads: int, size: int, cpus: Sequence[int] | None) -> NDArray[np.float64]:
    """Bytes per second, by windows of time."""
    part = size // n_threads
    chunk = min(part, _READ_CHUNK) // READ_STEP * READ_STEP
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)  # as the engine's own weights
    # After Ctrl-C a thread may still read for a moment: what the threads call holds the loops' code and the array, and this the mapping.
    array = (ctypes.c_char * size).from_buffer(memory)

    def prepare(k: int) -> None:
        ctypes.memset(ctypes.addressof(array) + k * part, 1, part)

    def work(k: int, i: int) -> None:
        """One chunk after the other, and from the start again."""
        loops.read(ctypes.addressof(array) + k * part + i * chunk % (part - chunk + 1) // READ_STEP * READ_STEP, chunk)

    return _rates(n_threads, cpus, prepare, work, amount=chunk, seconds=_READ_S)


def _multiply_rates(loops: Compiled, which: int, n_threads: int, cpus: Sequence[int] | None) -> NDArray[np.float64]:
    """Multiplications per second, by windows of time."""
    operands = np.random.default_rng(0).integers(0, 16, (n_threads, OPERAND_BYTES), np.uint8)
    return _rates(
        n_threads,
        cpus,
        prepare=lambda _k: None,
        work=lambda k, _i: loops.multiply[which][1](operands[k].ctypes.data, _ROUNDS),
        amount=_ROUNDS * loops.multiply[which][0].macs,
        seconds=_MULTIPLY_S,
    )


def _rates(
    n_threads: int,
    cpus: Sequence[int] | None,
    prepare: Callable[[int], object],
    work: Callable[[int, int], object],
    amount: float,
    seconds: float,
) -> NDArray[np.float64]:
    """What all threads do together per second, by windows of time, [_WINDOWS].

    The threads begin together, and do not wait for each other afterwards.

    Args:
        cpus: one for each thread to stay on; None for no such bond. Left to the system, two threads were seen to share one core of two
            for half a second, because the one had been woken on the core of the other.
        prepare: called as prepare(thread).
        work: called as work(thread, 0), work(thread, 1), ... until the time is over.
        amount: what one call of it does.
    """
    stamps: list[list[float]] = [[] for _ in range(n_threads)]
    failures: list[OSError] = []
    barrier = threading.Barrier(n_threads)
    is_over = threading.Event()

    def run(k: int) -> None:
        try:
            if cpus is not None:
                os.sched_setaffinity(0, {cpus[k]})  # of this thread alone
            prepare(k)
            barrier.wait()
        except OSError as error:
            failures.append(error)
            barrier.abort()
            return
        except threading.BrokenBarrierError:  # another thread failed, and says why
            return
        own = stamps[k]
        own.append(time.perf_counter())
        while own[-1] < own[0] + seconds and not is_over.is_set():
            work(k, len(own) - 1)
            own.append(time.perf_counter())

    threads = [threading.Thread(target=run, args=(k,), name=f"limits-{k}") for k in range(n_threads)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        is_over.set()  # after Ctrl-C
        barrier.abort()
    if failures:
        raise MeasurementError(f"the threads could not be bound to cores ({failures[0]}); try again")
    return rates_by_window(stamps, amount)


def rates_by_window(stamps: Sequence[Sequence[float]], amount: float) -> NDArray[np.float64]:
    """What all threads did per second in each of _WINDOWS windows of the time in which all of them worked.

    Args:
        stamps: for each thread, when it began and when each of its calls ended.
        amount: what each call did, evenly over its time.

    Raises:
        MeasurementError: there was no such time.
    """
    start, end = max(own[0] for own in stamps), min(own[-1] for own in stamps)
    if end <= start:
        raise MeasurementError("the threads did not run at the same time: the machine is too busy to be measured; try again")
    edges = np.linspace(start, end, _WINDOWS + 1)
    done = np.sum([np.interp(edges, own, amount * np.arange(len(own))) for own in stamps], axis=0)
    rates: NDArray[np.float64] = np.diff(done) / np.diff(edges)
    return rates
