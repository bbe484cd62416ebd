"""The machine at one moment: clock, temperature, time that a hypervisor took. Read before and after every trial, so it must be cheap."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from edgelm.backends.cgroup import read_number
from edgelm.bench.record import Conditions

# Silicon ends at 125 degrees; sensors that are not connected show 127, 255 or -273 degrees, or exactly 0.
_COLDEST, _HOTTEST = -40.0, 125.0
# Not what throttles the processor, or no temperature at all: batteries and their currents, disks, radios, Jetson's constant PMIC-Die, and
# the motherboard's own chips, whose inputs without a sensor float at plausible figures.
_ELSEWHERE = (
    *("bat", "bms", "bq2", "vbat", "ibat", "vph", "bcl", "charger", "pmic-die", "thermal-fan-est"),
    *("nvme", "drivetemp", "iwlwifi", "ath1", "mt79", "r8169", "spd5118", "jc42"),
    *("nct6", "nct7", "it8", "w836", "f718", "sch5", "asus", "ucsi"),
)


def read_conditions(origin: float, root: Path = Path("/")) -> Conditions:
    """What the system tells now; what it does not tell is None.

    Args:
        origin: `time.perf_counter()` at the record's start.
        root: of the file system, for tests.
    """
    return Conditions(time.perf_counter() - origin, _mhz(root), _celsius(root), _steal_s(root))


def _mhz(root: Path) -> float | None:
    """Mean clock of the CPUs that this process may use."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    folder = root / "sys/devices/system/cpu"
    khz = [number for cpu in cpus if (number := read_number(folder / f"cpu{cpu}/cpufreq/scaling_cur_freq"))]
    if khz:
        return sum(khz) / len(khz) / 1000
    return _mhz_of_cpuinfo(root, cpus)


def _mhz_of_cpuinfo(root: Path, cpus: set[int]) -> float | None:
    """The same from /proc/cpuinfo.

    Linux computes "cpu MHz" from the counters APERF and MPERF where the CPU has them, else it repeats the constant found at its start.
    A guest has these counters only in name, so under a hypervisor the figure is the constant too, and no clock.
    """
    found: list[float] = []
    flags: set[str] = set()
    cpu = ""
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "processor":
                cpu = value.strip()
            case "cpu MHz" if cpu.isdecimal() and int(cpu) in cpus:
                found.append(_number(value))
            case "flags" if not flags:
                flags = set(value.split())
    real = [mhz for mhz in found if mhz > 0] if "aperfmperf" in flags and "hypervisor" not in flags else []
    return sum(real) / len(real) if real else None


def _celsius(root: Path) -> float | None:
    """The hottest of the thermal zones and hwmon sensors that sit in or near the processor."""
    return max(_temperatures(root), default=None)


def _temperatures(root: Path) -> Iterator[float]:
    for file in _sensors(root):
        millidegrees = read_number(file)
        if millidegrees and _COLDEST <= millidegrees / 1000 < _HOTTEST:
            yield millidegrees / 1000


def _sensors(root: Path) -> Iterator[Path]:
    for zone in _folders(root / "sys/class/thermal", "thermal_zone"):
        if not _is_elsewhere(_text(zone / "type")) and _text(zone / "mode").strip() != "disabled":
            yield zone / "temp"
    for chip in _folders(root / "sys/class/hwmon", "hwmon"):
        if _is_elsewhere(_text(chip / "name")):
            continue
        for name in _names(chip):
            if name.startswith("temp") and name.endswith("_input") and read_number(chip / name.replace("_input", "_fault")) != 1:
                yield chip / name


def _is_elsewhere(name: str) -> bool:
    return name.strip().lower().startswith(_ELSEWHERE)


def _steal_s(root: Path) -> float | None:
    """The eighth column of /proc/stat's first line, in ticks (proc_stat(5)).

    A sandbox that shows zeros in every column tells nothing.
    """
    words = _text(root / "proc/stat").partition("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu" or not any(word.strip("0") for word in words[1:]):
        return None
    return int(words[8]) / os.sysconf("SC_CLK_TCK") if words[8].isdecimal() else None


def _folders(parent: Path, prefix: str) -> list[Path]:
    return [parent / name for name in _names(parent) if name.startswith(prefix)]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - Path objects for every name of /sys would cost more than the readings
    except OSError:  # not Linux, or not shown in this container
        return []


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
