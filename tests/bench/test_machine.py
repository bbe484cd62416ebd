import os
from pathlib import Path

import numpy as np
import psutil
import pytest

import edgelm
from edgelm.bench.machine import PACKAGES, describe_machine, package_version


def write(root: Path, path: str, content: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content + "\n")


def supply(root: Path, name: str, **files: str) -> None:
    for file, content in files.items():
        write(root, f"sys/class/power_supply/{name}/{file}", content)


def test_this_machine() -> None:
    machine = describe_machine()
    assert machine.cpu
    assert 1 <= machine.n_cores <= (os.cpu_count() or 1)
    assert machine.memory_bytes == pytest.approx(psutil.virtual_memory().total, rel=0.01)
    assert set(machine.versions) == {"edgelm", *PACKAGES}
    assert machine.versions["edgelm"] == edgelm.__version__
    assert machine.versions["numpy"] == np.__version__


def test_a_package_that_is_not_there_is_told() -> None:
    assert package_version("no-such-package-at-all") == "not installed"


def test_what_a_simulated_machine_tells(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor : 0\nmodel name : Cortex-A76\nflags : asimd")
    write(tmp_path, "proc/meminfo", "MemTotal:        8000000 kB\nMemFree:  1 kB")
    for cpu in os.sched_getaffinity(0):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "performance")
    machine = describe_machine(tmp_path)
    assert (machine.cpu, machine.governor, machine.memory_bytes, machine.virtual) == ("Cortex-A76", "performance", 8_000_000 * 1024, "")


def test_what_is_not_told_is_none(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path)
    assert (machine.governor, machine.memory_bytes, machine.virtual, machine.on_battery) == (None, None, None, None)


def test_governors_that_differ_are_all_named(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("governors can differ only where there are two CPUs")
    for i, cpu in enumerate(cpus):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "powersave" if i else "ondemand")
    assert describe_machine(tmp_path).governor == "ondemand, powersave"


@pytest.mark.parametrize(("status", "expected"), [("Discharging", True), ("Charging", False), ("Full", False), ("Unknown", None)])
def test_a_battery_tells_by_its_status(tmp_path: Path, status: str, expected: bool | None) -> None:
    supply(tmp_path, "BAT0", type="Battery", status=status)
    assert describe_machine(tmp_path).on_battery is expected


def test_mains_without_a_battery(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="1")
    assert describe_machine(tmp_path).on_battery is False


def test_the_battery_of_a_mouse_is_not_the_machines(tmp_path: Path) -> None:
    supply(tmp_path, "hidpp_battery_0", type="Battery", status="Discharging", scope="Device")
    assert describe_machine(tmp_path).on_battery is None


def test_a_battery_that_helps_out_beside_the_mains_is_told(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="1")
    supply(tmp_path, "BAT0", type="Battery", status="Discharging")
    assert describe_machine(tmp_path).on_battery is True
