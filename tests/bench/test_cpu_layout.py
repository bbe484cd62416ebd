from pathlib import Path

import pytest

from edgelm.bench.cpu_layout import allowed_cpus, last_level_cache_bytes, spread


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def cache(root: Path, cpu: int, index: int, level: int, size: str, shared: str, kind: str = "Unified") -> None:
    folder = root / f"devices/system/cpu/cpu{cpu}/cache/index{index}"
    for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", shared), ("type", kind)):
        write(folder / name, text)


def test_last_level_caches_are_counted_once_each(tmp_path: Path) -> None:
    for cpu in range(4):
        cache(tmp_path, cpu, 0, 1, "32K", str(cpu), "Data")
        cache(tmp_path, cpu, 1, 1, "32K", str(cpu), "Instruction")
        cache(tmp_path, cpu, 3, 3, "16M", "0-1" if cpu < 2 else "2-3")
    assert last_level_cache_bytes(tmp_path, range(4)) == 32 << 20
    assert last_level_cache_bytes(tmp_path, [0, 1]) == 16 << 20


def test_cores_without_the_highest_level_do_not_add_theirs(tmp_path: Path) -> None:
    cache(tmp_path, 0, 2, 2, "512K", "0")
    cache(tmp_path, 1, 3, 3, "4096K", "1")
    assert last_level_cache_bytes(tmp_path, [0, 1]) == 4 << 20


@pytest.mark.parametrize("size", ["", "unknown", "32X"])
def test_a_cache_without_a_size_is_not_known(tmp_path: Path, size: str) -> None:
    assert last_level_cache_bytes(tmp_path, [0]) is None
    cache(tmp_path, 0, 3, 3, size, "0")
    assert last_level_cache_bytes(tmp_path, [0]) is None


def topology(root: Path, cpu: int, siblings: str, capacity: int | None = None) -> None:
    write(root / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings)
    if capacity is not None:
        write(root / f"devices/system/cpu/cpu{cpu}/cpu_capacity", str(capacity))


def test_threads_get_cores_before_siblings(tmp_path: Path) -> None:
    for cpu in range(4):
        topology(tmp_path, cpu, f"{cpu % 2},{cpu % 2 + 2}")
    assert spread(2, tmp_path, range(4)) == [0, 1]
    assert spread(4, tmp_path, range(4)) == [0, 1, 2, 3]


def test_fast_cores_come_first(tmp_path: Path) -> None:
    for cpu, capacity in enumerate((400, 400, 1024, 1024)):
        topology(tmp_path, cpu, str(cpu), capacity)
    assert spread(3, tmp_path, range(4)) == [2, 3, 0]


def test_memory_nodes_take_turns(tmp_path: Path) -> None:
    for cpu in range(4):
        topology(tmp_path, cpu, str(cpu))
    write(tmp_path / "devices/system/node/node0/cpulist", "0-1")
    write(tmp_path / "devices/system/node/node1/cpulist", "2-3")
    assert spread(2, tmp_path, range(4)) == [0, 2]


def test_more_threads_than_cpus_are_not_bound(tmp_path: Path) -> None:
    assert spread(3, tmp_path, [0, 1]) is None


def test_this_machine_has_a_cpu_for_one_thread() -> None:
    found = spread(1)
    assert found is None or set(found) <= allowed_cpus()
