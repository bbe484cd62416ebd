"""Thread choice on made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgelm.backends.cpu.topology import choose_threads, cpu_features, cpu_model, cpu_name


class Machine:
    """A /sys and a /proc under a temporary folder."""

    def __init__(self, root: Path) -> None:
        self.sys, self.proc = root / "sys", root / "proc"
        self.write(self.proc / "self" / "cgroup", "0::/\n")

    @staticmethod
    def write(file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def siblings(self, *groups: str, name: str = "core_cpus_list") -> None:
        for group in groups:
            for cpu in group.split(","):
                self.write(self.sys / f"devices/system/cpu/cpu{cpu}/topology/{name}", group + "\n")

    def choose(self, cpuset: set[int]):  # type: ignore[no-untyped-def]
        return choose_threads(self.sys, self.proc, cpuset)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_sibling_hyperthreads_count_once(machine: Machine) -> None:
    machine.siblings("0,4", "1,5", "2,6", "3,7")
    choice = machine.choose(set(range(8)))
    assert (choice.n_threads, choice.physical_cores, choice.quota) == (4, 4, None)
    assert "4 physical cores among 8 logical CPUs" in choice.reason


def test_older_kernels_name_of_the_sibling_list(machine: Machine) -> None:
    machine.siblings("0,1", "2,3", name="thread_siblings_list")
    assert machine.choose({0, 1, 2, 3}).n_threads == 2


def test_cpuset_cuts_the_cores(machine: Machine) -> None:
    machine.siblings("0,4", "1,5", "2,6", "3,7")
    choice = machine.choose({1, 5, 2})
    assert (choice.n_threads, choice.cpuset) == (2, (1, 2, 5))


@pytest.mark.parametrize(("limit", "threads"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 4), ("800000 100000", 4)])
def test_quota_of_cgroup_v2(machine: Machine, limit: str, threads: int) -> None:
    machine.siblings("0", "1", "2", "3")
    machine.write(machine.sys / "fs/cgroup/cpu.max", limit + "\n")
    assert machine.choose({0, 1, 2, 3}).n_threads == threads


def test_the_tightest_parent_group_decides(machine: Machine) -> None:
    machine.siblings("0", "1", "2", "3")
    machine.write(machine.proc / "self/cgroup", "0::/slice/service\n")
    machine.write(machine.sys / "fs/cgroup/slice/service/cpu.max", "max 100000\n")
    machine.write(machine.sys / "fs/cgroup/cpu.max", "350000 100000\n")
    machine.write(machine.sys / "fs/cgroup/slice/cpu.max", "300000 100000\n")
    choice = machine.choose({0, 1, 2, 3})
    assert (choice.n_threads, choice.quota) == (3, 3.0)
    assert "quota 3" in choice.reason


def test_quota_of_cgroup_v1_in_a_container_that_sees_the_hosts_path(machine: Machine) -> None:
    machine.siblings("0", "1", "2", "3")
    machine.write(machine.proc / "self/cgroup", "5:cpu,cpuacct:/docker/0123abc\n3:memory:/docker/0123abc\n")
    machine.write(machine.sys / "fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000\n")
    machine.write(machine.sys / "fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert machine.choose({0, 1, 2, 3}).n_threads == 2


def test_no_limit_of_cgroup_v1(machine: Machine) -> None:
    machine.siblings("0", "1")
    machine.write(machine.proc / "self/cgroup", "5:cpu:/\n")
    machine.write(machine.sys / "fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    machine.write(machine.sys / "fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    choice = machine.choose({0, 1})
    assert (choice.n_threads, choice.quota) == (2, None)


def test_without_any_topology_there_is_still_a_thread(tmp_path: Path) -> None:
    choice = choose_threads(tmp_path / "none", tmp_path / "none", {0})
    assert choice.n_threads == 1


def test_this_machine_has_a_choice_within_its_cpuset() -> None:
    choice = choose_threads()
    assert 1 <= choice.n_threads <= len(choice.cpuset)


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [("processor\t: 0\nmodel name\t: AMD EPYC 7B13\n", "AMD EPYC 7B13"), ("processor\t: 0\nModel\t\t: Raspberry Pi 5\n", "Raspberry Pi 5")],
)
def test_processor_name(tmp_path: Path, cpuinfo: str, model: str) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert cpu_model(tmp_path) == model


def test_llvm_knows_this_cpu() -> None:
    assert cpu_name()
    assert cpu_features()
