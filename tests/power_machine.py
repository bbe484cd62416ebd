"""A made-up machine for tests of power meters: a known power curve, a clock moved by hand, and the kernel's files under a folder."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgelm.bench.power.base import Meter, Reading
from edgelm.bench.power.sampler import TraceLog, read_into
from edgelm.bench.record import MeterInfo, MeterTrace
from edgelm.errors import MeterError

INTEL = "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: {model}\nflags\t\t: fpu vme\n"
AMD = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nflags\t\t: fpu vme\n"
RANGE_UJ = 262143328850


class Clock:
    """Time that passes when told to."""

    def __init__(self, start: float = 1000.0) -> None:
        self.time = start

    def __call__(self) -> float:
        return self.time

    def pass_by(self, seconds: float) -> None:
        self.time += seconds


@dataclass(frozen=True)
class Curve:
    """A ramp, a sine and bursts: watts over seconds, with its integral in closed form.

    Bursts of `burst_w` last a third of each second.
    """

    base_w: float = 8.0
    ramp_w_per_s: float = 0.3
    sine_w: float = 3.0
    sine_hz: float = 0.7
    burst_w: float = 5.0

    def watts(self, t: float) -> float:
        burst = self.burst_w if t % 1 < 1 / 3 else 0.0
        return self.base_w + self.ramp_w_per_s * t + self.sine_w * math.sin(2 * math.pi * self.sine_hz * t) + burst

    def joules(self, t: float) -> float:
        """From 0 to t."""
        omega = 2 * math.pi * self.sine_hz
        sine = self.sine_w * (1 - math.cos(omega * t)) / omega
        burst = self.burst_w * (math.floor(t) / 3 + min(t % 1, 1 / 3))
        return self.base_w * t + self.ramp_w_per_s * t**2 / 2 + sine + burst


def play(meter: Meter, file: Path, curve: Curve, seconds: float, every_s: float, start_j: float = 0.0) -> MeterTrace:
    """Let time pass, write what the curve says into the meter's file, and read the meter."""
    clock = Clock()
    log = TraceLog(meter, clock())
    origin = clock()
    for t in np.arange(0, seconds + every_s / 2, every_s):
        clock.time = origin + float(t)
        if meter.info.quantity == "power":
            file.write_text(f"{curve.watts(float(t)) * 1e6:.0f}\n")
        else:
            joules = start_j + curve.joules(float(t))
            file.write_text(f"{(joules % meter.wrap_j if meter.wrap_j else joules) * 1e6:.0f}\n")
        read_into(log, meter, clock)
    return log.trace()


def trace(values: list[float], every_s: float = 0.1, problem: str = "", **fields: object) -> MeterTrace:
    """A trace read at even steps from 0."""
    return MeterTrace(info(**fields), tuple(n * every_s for n in range(len(values))), tuple(values), problem)


def info(**fields: object) -> MeterInfo:
    """A meter of no special kind, but for these fields."""
    usual = MeterInfo("m", "a part", "package", "measured", "energy", 0.001, 0.02)
    return replace(usual, **fields)  # type: ignore[arg-type]


def put(file: Path, number: float) -> None:
    """Write a number so that whoever reads beside sees the old one or the new one, as in the kernel's files."""
    new = file.with_suffix(".new")
    new.write_text(f"{number:.0f}\n")
    new.replace(file)


def zone(root: Path, folder: str, name: str, energy_uj: int = 1_000_000, range_uj: int = RANGE_UJ) -> Path:
    """A zone under /sys/class/powercap; the path of its counter."""
    path = root / "sys/class/powercap" / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path / "energy_uj"


def chip(root: Path, number: int, name: str, **files: object) -> Path:
    """A chip under /sys/class/hwmon with these files."""
    path = root / f"sys/class/hwmon/hwmon{number}"
    path.mkdir(parents=True)
    for file, content in {"name": name, **files}.items():
        (path / file).write_text(f"{content}\n")
    return path


def cpuinfo(root: Path, text: str) -> None:
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/cpuinfo").write_text(text)


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Root may read everything, so be nobody for a while; others are who they are."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class DrawnMeter:
    """A package's counter, which rises by `watts` until they are set anew, and fails once it is unplugged."""

    wrap_j = None

    def __init__(self, watts: float) -> None:
        self.info = info(name="drawn")
        self.is_unplugged = False
        self._lock = threading.Lock()
        self._watts, self._joules, self._time = watts, 0.0, time.perf_counter()

    def draw(self, watts: float) -> None:
        """From now on."""
        with self._lock:
            self._joules, self._time = self._now(), time.perf_counter()
            self._watts = watts

    def read(self) -> Reading:
        if self.is_unplugged:
            raise MeterError("it does not answer")
        with self._lock:
            return Reading(self._now())

    def close(self) -> None:
        pass

    def _now(self) -> float:
        return self._joules + self._watts * (time.perf_counter() - self._time)
