from __future__ import annotations

import os
import plistlib
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from power_devices import write_program

from edgelm.bench.power.apple import discover_apple, sample_joules
from edgelm.bench.power.base import AbsentMeter, Meter
from edgelm.errors import MeterError

PACKAGE = """
class _Counters:
    cpu_total_mj, gpu_mj, gpu_sram_mj, dram_mj, ane_mj = 1500, 700, None, 250, 0

class AppleEnergyMonitor:
    def get_cumulative_energy(self):
        return _Counters
"""


def sample(milliwatts: float, elapsed_s: float = 0.2) -> bytes:
    """As macOS 14 on an M-series chip writes it, with what is not looked at cut down."""
    processor = {
        "clusters": [],
        "cpu_power": milliwatts * 0.8,
        "gpu_power": milliwatts * 0.2,
        "ane_power": 0.0,
        "combined_power": milliwatts,
    }
    content = {"is_delta": True, "elapsed_ns": int(elapsed_s * 1e9), "hw_model": "Mac15,3", "processor": processor}
    return plistlib.dumps(content)


def powermetrics(folder: Path, output: bytes, monkeypatch: pytest.MonkeyPatch, ending: str = "sleep 20") -> None:
    """A powermetrics that writes the output, and then does what `ending` says."""
    (folder / "output").write_bytes(output)
    write_program(folder, "powermetrics", f'echo "$@" > {folder}/arguments; cat {folder}/output; exec {ending}', monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def the_meter() -> Meter:
    (meter,) = discover_apple(system="darwin")
    assert not isinstance(meter, AbsentMeter), meter
    return meter


def test_elsewhere_there_is_none() -> None:
    assert discover_apple(system="linux") == [AbsentMeter("apple", "this is no Mac")]


def test_ioreport_adds_what_the_chip_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zeus_apple_silicon.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "zeus_apple_silicon", raising=False)
    meter = the_meter()
    assert meter.read().value == pytest.approx(2.45)
    assert meter.info.domain == "Apple chip (CPU, GPU, DRAM, neural engine)"
    assert (meter.info.kind, meter.info.scope, meter.info.quantity) == ("vendor model", "package", "energy")
    sys.modules["zeus_apple_silicon"]._Counters.gpu_mj = None
    with pytest.raises(MeterError, match="dropped"):
        meter.read()
    sys.modules["zeus_apple_silicon"]._Counters.cpu_total_mj = None
    (absent,) = discover_apple(system="darwin")
    assert isinstance(absent, AbsentMeter)
    assert "no energy counter of the CPU" in absent.reason
    del sys.modules["zeus_apple_silicon"]


def test_powermetrics_adds_up_every_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    powermetrics(tmp_path, b"\0".join([sample(5000), sample(7000), sample(9000, 0.4)]), monkeypatch)
    meter = the_meter()
    deadline = time.monotonic() + 10
    while (reading := meter.read()).stamp != 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reading.value == pytest.approx(5 * 0.2 + 7 * 0.2 + 9 * 0.4)
    assert (meter.info.kind, meter.info.quantity) == ("vendor model", "energy")
    assert "--format plist" in (tmp_path / "arguments").read_text()
    meter.close()
    meter.close()


def test_powermetrics_that_ends_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    powermetrics(tmp_path, sample(5000) + b"\0", monkeypatch, "sleep 0.3")
    meter = the_meter()
    meter._thread.join(10)  # type: ignore[attr-defined]
    with pytest.raises(MeterError, match="powermetrics ended"):
        meter.read()
    meter.close()


def test_powermetrics_that_stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgelm.bench.power.apple._STALL_S", 0.05)
    powermetrics(tmp_path, sample(5000), monkeypatch)
    meter = the_meter()
    time.sleep(0.1)
    with pytest.raises(MeterError, match="no new sample"):
        meter.read()
    meter.close()


@pytest.mark.parametrize(
    ("output", "ending", "said"),
    [
        (b"", "sh -c 'echo powermetrics must be invoked as the superuser >&2; exit 1'", "must be invoked as the superuser"),
        (b"garbage\0", "sleep 20", "no property list"),
        (plistlib.dumps({"elapsed_ns": 1, "processor": {"cpu_power": 3.0}}), "sleep 20", "no combined_power"),
        (plistlib.dumps({"elapsed_ns": 1}), "sleep 20", "nothing of the processor"),
    ],
)
def test_powermetrics_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: bytes, ending: str, said: str) -> None:
    powermetrics(tmp_path, output, monkeypatch, ending)
    (absent,) = discover_apple(system="darwin")
    assert isinstance(absent, AbsentMeter)
    assert said in absent.reason
    assert "zeus-apple-silicon" in absent.advice


def test_without_root_the_advice_says_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    powermetrics(tmp_path, b"", monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    (absent,) = discover_apple(system="darwin")
    assert isinstance(absent, AbsentMeter)
    assert "needs root" in absent.reason
    assert "zeus-apple-silicon" in absent.advice
    assert "sudo" in absent.advice


def test_an_intel_mac_shows_its_package_in_watts() -> None:
    assert sample_joules(plistlib.dumps({"elapsed_ns": 500_000_000, "processor": {"package_watts": 12.0}})) == pytest.approx(6.0)


@pytest.mark.parametrize("processor", [{"combined_power": "5"}, {"combined_power": -1.0}, {"combined_power": float("nan")}, []])
def test_samples_that_make_no_sense(processor: Any) -> None:
    with pytest.raises(MeterError):
        sample_joules(plistlib.dumps({"elapsed_ns": 200_000_000, "processor": processor}))
