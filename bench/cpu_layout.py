"""What Linux says of the processor's caches and memory nodes, as far as this process may use them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from edgelm.backends.cgroup import SYS

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def last_level_cache_bytes(sys_root: Path = SYS, cpus: Iterable[int] | None = None) -> int | None:
    """Bytes of the last-level caches of the CPUs that the process may use, all together; None where the system does not tell."""
    caches: dict[tuple[int, str], int | None] = {}
    for cpu in allowed_cpus() if cpus is None else cpus:
        found = [
            (int(_read(folder / "level")), _read(folder / "shared_cpu_list") or str(cpu), _bytes(_read(folder / "size")))
            for folder in _cpu(sys_root, cpu).glob("cache/index*")
            if _read(folder / "level").isdigit() and _read(folder / "type") != "Instruction"
        ]
        if found:
            level, shared, size = max(found, key=lambda cache: cache[0])
            caches[level, shared] = size
    top = max((level for level, _ in caches), default=0)
    sizes = [size for (level, _), size in caches.items() if level == top]
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def spread(n_threads: int, sys_root: Path = SYS, cpus: Iterable[int] | None = None) -> list[int] | None:
    """A CPU for each of n_threads threads: one of each core before any sibling hyperthread, the fastest cores first, and
    the memory nodes in turn. None where there are fewer CPUs than threads, or the system does not bind threads to CPUs.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = sorted(allowed_cpus() if cpus is None else cpus)
    if n_threads > len(allowed):
        return None
    nodes = _nodes(sys_root)
    seen: Counter[str] = Counter()
    ranked = []
    for cpu in sorted(allowed, key=lambda cpu: -_capacity(sys_root, cpu)):
        core = _read(_cpu(sys_root, cpu) / "topology/thread_siblings_list") or str(cpu)
        node = nodes.get(cpu, 0)
        sibling, speed = seen[f"core {core}"], -_capacity(sys_root, cpu)
        turn = seen[f"node {node}, sibling {sibling}, speed {speed}"]
        seen.update([f"core {core}", f"node {node}, sibling {sibling}, speed {speed}"])
        ranked.append((sibling, speed, turn, node, cpu))
    return [cpu for *_, cpu in sorted(ranked)[:n_threads]]


def allowed_cpus() -> frozenset[int]:
    """Numbers of the CPUs that the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _nodes(sys_root: Path) -> dict[int, int]:
    """Number of each CPU's memory node; empty where the system does not tell."""
    folders = (sys_root / "devices/system/node").glob("node[0-9]*")
    return {cpu: int(folder.name[4:]) for folder in folders for cpu in _cpu_list(_read(folder / "cpulist"))}


def _capacity(sys_root: Path, cpu: int) -> int:
    """How fast the core is beside the others (1024 for the fastest), where cores differ."""
    capacity = _read(_cpu(sys_root, cpu) / "cpu_capacity")
    return int(capacity) if capacity.isdigit() else 1024


def _cpu(sys_root: Path, cpu: int) -> Path:
    return sys_root / f"devices/system/cpu/cpu{cpu}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:  # a container or a virtual machine may hide it
        return ""


def _bytes(size: str) -> int | None:
    """Bytes of the kernel's "32768K"."""
    number, unit = size[:-1], size[-1:]
    return int(number) * _UNITS[unit] if number.isdigit() and unit in _UNITS else None


def _cpu_list(text: str) -> frozenset[int]:
    """CPUs of the kernel's "0-3,8"."""
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)
