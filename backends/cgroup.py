"""The control groups that this process is in: where Linux containers keep their CPU quota and memory limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

SYS = Path("/sys")
PROC = Path("/proc")


def group_folders(controller: str, sys_root: Path = SYS, proc_root: Path = PROC) -> Iterator[Path]:
    """Folders of the process's own group and its parents, up to the root, that exist here.

    Both versions are looked at: v2 has one tree (/sys/fs/cgroup), v1 one per controller (/sys/fs/cgroup/CONTROLLER).
    Inside a container the group's path may be the host's, which is not mounted: then only the root is found, and it is the container's.
    """
    for line in _lines(proc_root / "self" / "cgroup"):
        fields = line.split(":", 2)
        if len(fields) != 3:
            continue
        _, controllers, group = fields
        if controllers == "":
            trees = [sys_root / "fs" / "cgroup", sys_root / "fs" / "cgroup" / "unified"]
        elif controller in controllers.split(","):
            trees = [sys_root / "fs" / "cgroup" / controllers, sys_root / "fs" / "cgroup" / controller]
        else:
            continue
        for tree in trees:
            yield from _up_to(tree, group)


def read_number(file: Path) -> int | None:
    """The number in a group's file; None where the file is missing or says "max" (no limit)."""
    words = " ".join(_lines(file)).split()
    return int(words[0]) if words and words[0].lstrip("-").isdecimal() else None


def cpu_quota(sys_root: Path = SYS, proc_root: Path = PROC) -> float | None:
    """CPUs' worth of time that the process may use, the tightest of its groups; None without a limit."""
    quotas = []
    for folder in group_folders("cpu", sys_root, proc_root):
        words = " ".join(_lines(folder / "cpu.max")).split()
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal():
            quota, period = int(words[0]), int(words[1])
        else:
            quota = read_number(folder / "cpu.cfs_quota_us") or -1
            period = read_number(folder / "cpu.cfs_period_us") or 0
        if quota > 0 and period > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_headroom(sys_root: Path = SYS, proc_root: Path = PROC) -> int | None:
    """Bytes that the process may still allocate before a group's limit, page cache counted as free; None without a limit."""
    rooms = []
    for folder in group_folders("memory", sys_root, proc_root):
        for limit_name, usage_name in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, usage = read_number(folder / limit_name), read_number(folder / usage_name)
            if limit is not None and usage is not None:
                rooms.append(max(limit - usage + _reclaimable(folder), 0))
    return min(rooms, default=None)


def _reclaimable(folder: Path) -> int:
    """Bytes of cached file pages that the kernel gives up first (total_ in v1 counts the group's children too)."""
    stat = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat") if " " in line)
    value = stat.get("total_inactive_file", stat.get("inactive_file", "0"))
    return int(value) if value.isdecimal() else 0


def _up_to(tree: Path, group: str) -> Iterator[Path]:
    parts = [part for part in group.split("/") if part not in ("", ".", "..")]
    for n in range(len(parts), -1, -1):
        folder = tree.joinpath(*parts[:n])
        if folder.is_dir():
            yield folder


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not Linux, or not mounted in this container: no limit to be seen
        return []
