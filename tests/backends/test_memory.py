"""Free memory as the machine and its control groups tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgelm.backends.memory import available_memory, require_memory
from edgelm.errors import InsufficientMemoryError


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_limit_of_cgroup_v2_less_usage_plus_reclaimable_cache(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/app\n")
    group = tmp_path / "sys/fs/cgroup/app"
    write(group / "memory.max", "30000000\n")
    write(group / "memory.current", "20000000\n")
    write(group / "memory.stat", "anon 15000000\ninactive_file 4000000\n")
    assert available_memory(tmp_path / "sys", tmp_path / "proc") == 14_000_000


def test_limit_of_cgroup_v1(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:memory:/gone\n")
    group = tmp_path / "sys/fs/cgroup/memory"
    write(group / "memory.limit_in_bytes", "1000000\n")
    write(group / "memory.usage_in_bytes", "1400000\n")
    write(group / "memory.stat", "total_inactive_file 100000\n")
    assert available_memory(tmp_path / "sys", tmp_path / "proc") == 0


def test_without_limits_the_machine_decides(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "sys/fs/cgroup/memory.max", "max\n")
    assert available_memory(tmp_path / "sys", tmp_path / "proc") > 1_000_000


def test_require_memory_says_what_and_how_much() -> None:
    require_memory(1, "a byte")
    with pytest.raises(InsufficientMemoryError, match=r"the KV cache needs 1,000,000,000 MB of memory, but .* smaller n_ctx"):
        require_memory(10**15, "the KV cache")
