"""What the system tells of one moment, from simulated /proc and /sys trees."""

import os
import time
from pathlib import Path

import pytest

from edgelm.bench.conditions import read_conditions

CPUS = sorted(os.sched_getaffinity(0))


def write(root: Path, path: str, content: object) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{content}\n")


def cpuinfo(mhz: float, flags: str) -> str:
    return "\n".join(f"processor\t: {cpu}\ncpu MHz\t\t: {mhz + cpu:.3f}\nflags\t\t: fpu {flags}\n" for cpu in range(max(CPUS) + 1))


def mean_of_cpus(base: float) -> float:
    return base + sum(CPUS) / len(CPUS)


def test_what_is_not_told_is_none(tmp_path: Path) -> None:
    origin = time.perf_counter()
    conditions = read_conditions(origin, tmp_path)
    assert 0 <= conditions.time_s <= time.perf_counter() - origin
    assert (conditions.mhz, conditions.celsius, conditions.steal_s) == (None, None, None)


def test_the_clock_is_the_mean_of_the_cpus_that_may_be_used(tmp_path: Path) -> None:
    for cpu in CPUS:
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq", 1_500_000 + 1000 * cpu)
    write(tmp_path, f"sys/devices/system/cpu/cpu{max(CPUS) + 1}/cpufreq/scaling_cur_freq", 9_000_000)
    write(tmp_path, "proc/cpuinfo", cpuinfo(4000.0, "aperfmperf"))
    assert read_conditions(0.0, tmp_path).mhz == pytest.approx(mean_of_cpus(1500.0))


def test_cpuinfo_tells_the_clock_where_it_is_computed(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", cpuinfo(2000.0, "aperfmperf"))
    assert read_conditions(0.0, tmp_path).mhz == pytest.approx(mean_of_cpus(2000.0))


@pytest.mark.parametrize("flags", ["hypervisor", "hypervisor aperfmperf", "sse2"])
def test_a_constant_is_no_clock(tmp_path: Path, flags: str) -> None:
    write(tmp_path, "proc/cpuinfo", cpuinfo(2445.4, flags))
    assert read_conditions(0.0, tmp_path).mhz is None


def test_the_hottest_sensor_counts(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/thermal/thermal_zone0/type", "x86_pkg_temp")
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", 61000)
    write(tmp_path, "sys/class/hwmon/hwmon3/name", "k10temp")
    write(tmp_path, "sys/class/hwmon/hwmon3/temp1_input", 72125)
    write(tmp_path, "sys/class/hwmon/hwmon3/temp2_input", 40000)
    write(tmp_path, "sys/class/hwmon/hwmon3/temp1_max", 99000)
    assert read_conditions(0.0, tmp_path).celsius == 72.125


@pytest.mark.parametrize("millidegrees", [127000, 255000, -273150, -128000, 0, 125000, "", "N/A"])
def test_absurd_temperatures_are_not_believed(tmp_path: Path, millidegrees: object) -> None:
    write(tmp_path, "sys/class/thermal/thermal_zone0/type", "cpu-thermal")
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", millidegrees)
    assert read_conditions(0.0, tmp_path).celsius is None


def test_a_machine_in_the_cold_is_believed(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", -12500)
    assert read_conditions(0.0, tmp_path).celsius == -12.5


@pytest.mark.parametrize("kind", ["battery", "BAT0", "PMIC-Die", "vbat", "bcl-soc", "iwlwifi_1"])
def test_zones_that_are_not_the_processor_are_left_out(tmp_path: Path, kind: str) -> None:
    write(tmp_path, "sys/class/thermal/thermal_zone0/type", kind)
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", 100000)
    write(tmp_path, "sys/class/thermal/thermal_zone1/type", "CPU-therm")
    write(tmp_path, "sys/class/thermal/thermal_zone1/temp", 44500)
    assert read_conditions(0.0, tmp_path).celsius == 44.5


@pytest.mark.parametrize("chip", ["nct6798", "nvme", "BAT1", "it8686", "spd5118"])
def test_chips_that_are_not_the_processor_are_left_out(tmp_path: Path, chip: str) -> None:
    write(tmp_path, "sys/class/hwmon/hwmon0/name", chip)
    write(tmp_path, "sys/class/hwmon/hwmon0/temp1_input", 110000)
    assert read_conditions(0.0, tmp_path).celsius is None


def test_faulty_sensors_and_disabled_zones_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/hwmon/hwmon0/name", "coretemp")
    write(tmp_path, "sys/class/hwmon/hwmon0/temp1_input", 90000)
    write(tmp_path, "sys/class/hwmon/hwmon0/temp1_fault", 1)
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", 90000)
    write(tmp_path, "sys/class/thermal/thermal_zone0/mode", "disabled")
    assert read_conditions(0.0, tmp_path).celsius is None


def test_steal_time_is_the_eighth_column_of_all_cpus(tmp_path: Path) -> None:
    write(tmp_path, "proc/stat", "cpu  10 20 30 40 50 60 70 1250 90 100\ncpu0 1 2 3 4 5 6 7 8 9 10")
    assert read_conditions(0.0, tmp_path).steal_s == 1250 / os.sysconf("SC_CLK_TCK")


def test_a_machine_without_theft_has_none_of_it(tmp_path: Path) -> None:
    write(tmp_path, "proc/stat", "cpu  10 20 30 40 50 60 70 0 0 0")
    assert read_conditions(0.0, tmp_path).steal_s == 0.0


@pytest.mark.parametrize(
    "stat", ["cpu  0 0 0 0 0 0 0 0 0 0", "cpu  10 20 30 40 50 60 70", "cpu0 1 2 3 4 5 6 7 8 9 10", "cpu 1 2 3 4 5 6 7 x 9"]
)
def test_steal_time_that_is_not_told_is_none(tmp_path: Path, stat: str) -> None:
    write(tmp_path, "proc/stat", stat)
    assert read_conditions(0.0, tmp_path).steal_s is None


def test_this_machine_answers() -> None:
    conditions = read_conditions(time.perf_counter())
    assert conditions.mhz is None or 50 < conditions.mhz < 10_000
    assert conditions.celsius is None or -40 <= conditions.celsius < 125
