"""Where a benchmark runs: processor, memory, versions, governor, hypervisor, battery."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgelm.backends.cpu.topology import choose_threads, cpu_model
from edgelm.bench.record import Machine
from edgelm.bench.virtualization import find_virtualization
from edgelm.version import __version__

PACKAGES = ("numpy", "numba", "llvmlite", "llama-cpp-python", "onnxruntime", "onnxruntime-genai")
"""Packages that compute, besides edgelm."""


def describe_machine(root: Path = Path("/")) -> Machine:
    """The machine, as far as its system tells.

    Args:
        root: of the file system, for tests.
    """
    threads = choose_threads(root / "sys", root / "proc")
    return Machine(
        cpu=cpu_model(root / "proc"),
        n_cores=threads.physical_cores,
        system=platform.platform(),
        python=platform.python_version(),
        versions={"edgelm": __version__, **{package: package_version(package) for package in PACKAGES}},
        governor=_governor(root, threads.cpuset),
        virtual=find_virtualization(root),
        memory_bytes=_memory_bytes(root),
        on_battery=_on_battery(root),
    )


def package_version(package: str) -> str:
    """Of an installed package; "not installed" otherwise."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _governor(root: Path, cpus: tuple[int, ...]) -> str | None:
    """Of the CPUs that this process may use; several, if they differ, joined by commas."""
    names = {_text(root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor") for cpu in cpus} - {""}
    return ", ".join(sorted(names)) or None


def _memory_bytes(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "MemTotal:" and words[1].isdecimal():
            return int(words[1]) * 1024
    if root != Path("/"):
        return None
    import psutil

    return int(psutil.virtual_memory().total)


def _on_battery(root: Path) -> bool | None:
    """Whether a battery of the machine is being discharged; False with one that is not, or with mains; None if no supply is listed.

    Batteries of mice and other devices have the scope "Device" (Documentation/ABI/testing/sysfs-class-power).
    """
    folder = root / "sys/class/power_supply"
    if not folder.is_dir():
        return None
    supplies = [supply for supply in folder.iterdir() if _text(supply / "scope") != "Device"]
    states = {_text(supply / "status") for supply in supplies if _text(supply / "type") == "Battery"}
    online = {_text(supply / "online") for supply in supplies if _text(supply / "type") != "Battery"}
    if "Discharging" in states:
        return True
    return False if "1" in online or states & {"Charging", "Full", "Not charging"} else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
