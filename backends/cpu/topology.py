"""Which CPU this is, and how many threads should compute on it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgelm.backends.cgroup import PROC, SYS, cpu_quota


@dataclass(frozen=True)
class ThreadChoice:
    """How many threads compute, and why.

    Attributes:
        n_threads: threads to use, at least 1.
        reason: one line for people.
        physical_cores: cores that the process may run on, sibling hyperthreads counted once.
        cpuset: numbers of the logical CPUs that the process may run on.
        quota: CPUs' worth of time that the control groups allow; None without a limit.
    """

    n_threads: int
    reason: str
    physical_cores: int
    cpuset: tuple[int, ...]
    quota: float | None


def choose_threads(sys_root: Path = SYS, proc_root: Path = PROC, cpuset: Iterable[int] | None = None) -> ThreadChoice:
    """One thread per physical core in the cpuset, and no more than the quota pays for.

    Two sibling hyperthreads share the vector units and the core's path to memory, so the second brings little;
    a thread beyond the quota would be stopped in mid-step while the others wait for it.

    Args:
        cpuset: logical CPUs to choose from; those that the process may run on where it is None.
    """
    allowed = tuple(sorted(_allowed_cpus() if cpuset is None else cpuset))
    cores = _physical_cores(allowed, sys_root)
    quota = cpu_quota(sys_root, proc_root)
    n_threads = cores if quota is None else max(1, min(cores, math.floor(quota)))
    reason = f"{_count(cores, 'physical core')} among {_count(len(allowed), 'logical CPU')} that this process may use"
    if quota is not None:
        reason += f", CPU quota {quota:g}" + (" (the tighter one)" if n_threads < cores else "")
    return ThreadChoice(n_threads, reason, cores, allowed, quota)


def cpu_model(proc_root: Path = PROC) -> str:
    """The processor as its maker calls it; the name of its kind where the system does not tell."""
    import platform

    try:
        lines = (proc_root / "cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def cpu_name() -> str:
    """LLVM's name of the host CPU ("znver3"), which compiled kernels are made for."""
    from llvmlite import binding

    return str(binding.get_host_cpu_name())


def cpu_features() -> frozenset[str]:
    """LLVM's names of the instruction sets that the host CPU has ("avx2", "avx512vnni", "dotprod", ...)."""
    from llvmlite import binding

    return frozenset(name for name, present in binding.get_host_cpu_features().items() if present)


def _allowed_cpus() -> set[int]:
    """The process's CPU affinity; systems without one (macOS) let it run anywhere."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_cores(cpus: tuple[int, ...], sys_root: Path) -> int:
    """Groups of sibling hyperthreads that the CPUs belong to."""
    siblings = {_siblings(cpu, sys_root) for cpu in cpus}
    if None in siblings:  # no topology in this system or container
        import psutil

        return max(1, min(len(cpus), psutil.cpu_count(logical=False) or len(cpus)))
    return max(1, len(siblings))


def _siblings(cpu: int, sys_root: Path) -> str | None:
    topology = sys_root / "devices" / "system" / "cpu" / f"cpu{cpu}" / "topology"
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second is the older kernels' name
        try:
            return (topology / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
    return None


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
