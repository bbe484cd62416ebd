"""Apple silicon: the chip's own estimate of what its CPU, GPU and neural engine take.

Two ways to the same figures: IOReport's counters through the package zeus-apple-silicon, which needs no rights, or Apple's `powermetrics`,
which needs root. Both are models of Apple: the manual of powermetrics says that its values "are estimated and may be inaccurate". Neither
covers the screen, the storage or the power supply.
"""

from __future__ import annotations

import math
import os
import plistlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from xml.parsers.expat import ExpatError

from edgelm.bench.power.base import AbsentMeter, Meter, Reading
from edgelm.bench.record import MeterInfo
from edgelm.errors import MeterError

_SOURCE = "Apple's model; its manual of powermetrics: 'estimated and may be inaccurate', not for comparisons between devices"
_COUNTER_PERIOD_S = 0.1
_SAMPLE_MS = 200
_START_S = 10.0
_STALL_S = 5.0
_MAX_SAMPLE_BYTES = 1 << 24
_PARTS = {"cpu_total_mj": "CPU", "gpu_mj": "GPU", "gpu_sram_mj": "GPU memory", "dram_mj": "DRAM", "ane_mj": "neural engine"}
_ADVICE = "pip install zeus-apple-silicon, or run as root (sudo) for powermetrics"


class IoReportMeter:
    """IOReport's energy counters, in millijoules, added up."""

    wrap_j = None

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._parts = [name for name in _PARTS if getattr(self._counters(), name) is not None]
        if "cpu_total_mj" not in self._parts:
            raise MeterError("IOReport has no energy counter of the CPU here; is this Apple silicon, and no virtual machine?")
        covered = ", ".join(_PARTS[name] for name in self._parts)
        self.info = MeterInfo("apple", f"Apple chip ({covered})", "package", "vendor model", "energy", _COUNTER_PERIOD_S, source=_SOURCE)

    def read(self) -> Reading:
        counters = self._counters()
        values = [getattr(counters, name) for name in self._parts]
        if None in values:
            raise MeterError("IOReport dropped one of its energy counters; measure again")
        return Reading(sum(values) / 1e3)

    def close(self) -> None:
        pass

    def _counters(self) -> Any:
        try:
            return self._monitor.get_cumulative_energy()
        except (RuntimeError, ValueError) as error:
            raise MeterError(f"IOReport cannot be read ({error}); use powermetrics as root instead") from error


class PowermetricsMeter:
    """`powermetrics` running beside the benchmark; every sample's mean power times its length, added up."""

    wrap_j = None

    def __init__(self, command: str) -> None:
        self.info = MeterInfo(
            "apple", "Apple chip (CPU, GPU, neural engine)", "package", "vendor model", "energy", _SAMPLE_MS / 1e3, source=_SOURCE
        )
        self._changed = threading.Condition()
        self._joules, self._n_samples, self._sampled, self._problem = 0.0, 0, 0.0, ""
        arguments = [command, "--samplers", "cpu_power", "--sample-rate", str(_SAMPLE_MS), "--format", "plist"]
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for edgebench, which still wants the last sample
            )
        except OSError as error:
            raise MeterError(f"powermetrics cannot be started ({error.strerror or error})") from error
        self._thread = threading.Thread(target=self._collect, name="powermetrics", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._n_samples or self._problem, _START_S)
        if not self._n_samples:
            self.close()
            raise MeterError(self._problem or f"powermetrics gave no sample in {_START_S:g} s")

    def read(self) -> Reading:
        with self._changed:
            if self._problem:
                raise MeterError(self._problem)
            if time.monotonic() - self._sampled > _STALL_S:
                raise MeterError(f"powermetrics gave no new sample in {_STALL_S:g} s; it hangs")
            return Reading(self._joules, self._n_samples)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._thread is not threading.current_thread():
            self._thread.join(2)

    def _collect(self) -> None:
        output, errors = self._process.stdout, self._process.stderr
        if output is None or errors is None:
            return
        with output, errors:
            problem = _each_sample(output, self._add)
            self._process.terminate()
            said = errors.read(400).decode(errors="replace").strip()
        with self._changed:
            self._problem = problem or f"powermetrics ended{f': {said}' if said else ''}; it needs root: {_ADVICE}"
            self._changed.notify_all()

    def _add(self, joules: float) -> None:
        with self._changed:
            self._joules += joules
            self._n_samples += 1
            self._sampled = time.monotonic()
            self._changed.notify_all()


def discover_apple(root: Path = Path("/"), system: str = sys.platform) -> list[Meter | AbsentMeter]:
    """The chip's meter, by IOReport where its package is there, else by powermetrics."""
    if system != "darwin":
        return [AbsentMeter("apple", "this is no Mac")]
    try:
        from zeus_apple_silicon import AppleEnergyMonitor
    except ImportError:
        return [_open_powermetrics(root)]
    try:
        return [IoReportMeter(AppleEnergyMonitor())]
    except (MeterError, RuntimeError) as error:
        return [AbsentMeter("apple", str(error), "run as root (sudo) without zeus-apple-silicon, for powermetrics")]


def sample_joules(data: bytes) -> float:
    """Joules of one sample of powermetrics: combined_power in mW on Apple silicon, package_watts in W on Intel, times elapsed_ns.

    Raises:
        MeterError: it is no such sample.
    """
    try:
        sample = plistlib.loads(data)
    except (ValueError, ExpatError, plistlib.InvalidFileException, KeyError, IndexError, TypeError, AttributeError) as error:
        raise MeterError(f"powermetrics wrote something that is no property list ({error})") from error
    processor = sample.get("processor") if isinstance(sample, dict) else None
    if not isinstance(processor, dict):
        raise MeterError("powermetrics shows nothing of the processor; its macOS may be older than 12")
    watts = _number(processor.get("combined_power")) / 1e3
    if math.isnan(watts):
        watts = _number(processor.get("package_watts"))
    seconds = _number(sample.get("elapsed_ns")) / 1e9
    if not (math.isfinite(watts) and watts >= 0 and math.isfinite(seconds) and seconds > 0):
        raise MeterError("powermetrics shows no combined_power and no package_watts; its macOS may be older than 12")
    return watts * seconds


def _open_powermetrics(root: Path) -> Meter | AbsentMeter:
    del root  # the program is found by PATH
    command = shutil.which("powermetrics")
    if command is None:
        return AbsentMeter("apple", "neither zeus-apple-silicon nor powermetrics is here", _ADVICE)
    if os.geteuid() != 0:
        return AbsentMeter("apple", "zeus-apple-silicon is not installed, and powermetrics needs root", _ADVICE)
    try:
        return PowermetricsMeter(command)
    except MeterError as error:
        return AbsentMeter("apple", str(error), _ADVICE)


def _each_sample(output: IO[bytes], add: Callable[[float], None]) -> str:
    """Hand on every sample until the output ends; samples are separated by a NUL. Returns what was wrong, "" at the end of the output."""
    pending = b""
    while piece := os.read(output.fileno(), 1 << 16):
        *samples, pending = (pending + piece).split(b"\0")
        if pending.rstrip().endswith(b"</plist>"):  # the NUL comes only with the next sample, which would be late by one
            samples, pending = [*samples, pending], b""
        if len(pending) > _MAX_SAMPLE_BYTES:
            return "powermetrics wrote a sample that has no end"
        for sample in samples:
            try:
                if sample.strip():
                    add(sample_joules(sample.strip()))
            except MeterError as error:
                return str(error)
    return ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
