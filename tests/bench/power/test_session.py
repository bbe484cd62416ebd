"""A run's meters from beginning to end."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from power_machine import Clock, chip, put, zone

from edgelm.bench.power.base import AbsentMeter, Meter
from edgelm.bench.power.energy import energy_of
from edgelm.bench.power.hwmon import discover_hwmon
from edgelm.bench.power.rapl import discover_rapl
from edgelm.bench.power.session import PowerSession
from edgelm.bench.record import Machine, Record, Window
from edgelm.bench.record_file import decode_record, encode_record
from edgelm.errors import InvalidRequestError


def test_without_a_meter_it_says_why_and_how() -> None:
    absent = [AbsentMeter("rapl", "no /sys/class/powercap", "run: sudo modprobe intel_rapl_msr")]
    with PowerSession(0.0, assumed_w=65.0, meters=absent) as session:
        session.idle()
    power = session.power()
    assert not session.has_meter
    assert power.headline is None
    assert "rapl: no /sys/class/powercap: run: sudo modprobe intel_rapl_msr" in power.reason
    assert (power.traces, power.idle, power.idle_w, power.assumed_w) == ((), (), (), 65.0)
    assert energy_of(power, [Window(0, 1)]) == (None, power.reason)


@pytest.fixture(autouse=True)
def _read_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is moved by hand, so readings in between would have times that mean nothing."""
    monkeypatch.setattr("edgelm.bench.power.sampler.MIN_PERIOD_S", 1000.0)


class Machinery:
    """A counter that draws so many watts while time passes, which it does only in `spend`."""

    def __init__(self, root: Path) -> None:
        self.clock = Clock()
        self.counter = zone(root, "intel-rapl:0", "package-0", 900_000_000)
        self.session = PowerSession(self.clock(), meters=discover_rapl(root), clock=self.clock, rest=self.rest)

    def spend(self, seconds: float, watts: float) -> None:
        for _ in range(round(seconds / 0.1)):
            put(self.counter, int(self.counter.read_text()) + watts * 0.1 * 1e6)
            self.clock.pass_by(0.1)
            self.session.power()  # reads now

    def rest(self, seconds: float) -> None:
        self.spend(seconds, 4.0)


def test_idle_work_idle(tmp_path: Path) -> None:
    machine = Machinery(tmp_path)
    with machine.session as session:
        session.idle(3)
        machine.spend(5, 20.0)
        session.idle(3)
        within = session.power()
    power = session.power()
    assert within.headline == power.headline == "rapl:package-0"
    assert [time for window in power.idle for time in (window.start_s, window.end_s)] == pytest.approx([0, 3, 8, 11])
    assert power.idle_w == (pytest.approx(4.0), pytest.approx(4.0))
    energy, reason = energy_of(power, [Window(3.5, 5.5), Window(6, 7.5)])
    assert energy is not None, reason
    assert (energy.gross_j, energy.net_j) == (pytest.approx(70), pytest.approx(56))
    record = Record("run", "0" * 12, "2026-01-01T00:00:00+00:00", Machine("a", 1, "b", "3", {}), {}, seconds=12.0, power=power)
    assert decode_record(encode_record(record), "here").power == power


def test_interrupted_it_keeps_what_was_read_and_leaves_no_thread(tmp_path: Path) -> None:
    machine = Machinery(tmp_path)

    def interrupted() -> None:
        with machine.session as session:
            session.idle(3)
            machine.spend(2, 20.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("meter ")]
    energy, reason = energy_of(machine.session.power(), [Window(3, 4.5)])
    assert energy is not None, reason
    assert energy.gross_j == pytest.approx(30)
    assert energy.net_j is None
    assert "idle was not measured both before and after" in reason


def test_a_counter_that_is_reset_gives_no_energy(tmp_path: Path) -> None:
    machine = Machinery(tmp_path)
    with machine.session as session:
        machine.spend(3, 20.0)
        put(machine.counter, 17)
        machine.spend(3, 20.0)
    power = session.power()
    assert power.headline is None
    assert "rapl:package-0: its counter went back" in power.reason
    assert energy_of(power, [Window(1, 2)]) == (None, power.reason)


def test_a_machine_that_slept_gives_no_energy(tmp_path: Path) -> None:
    machine = Machinery(tmp_path)
    asleep = iter([100.0, 100.0, 107.5])
    machine.session = PowerSession(
        machine.clock(), meters=discover_rapl(tmp_path), clock=machine.clock, rest=machine.rest, asleep=lambda: next(asleep)
    )
    with machine.session as session:
        session.mark()
        machine.clock.pass_by(3)
        put(machine.counter, int(machine.counter.read_text()) + 60e6)
        assert session.power().headline == "rapl:package-0"
    power = session.power()
    assert power.headline is None
    assert "the machine was suspended for 7.5 s meanwhile" in power.reason


def test_a_rest_begins_when_a_slow_meter_shows_it(tmp_path: Path) -> None:
    machine = Machinery(tmp_path)
    chip(tmp_path, 0, "power_meter", power1_average=8_000_000, power1_average_interval=1000)
    machine.session = PowerSession(machine.clock(), meters=discover_hwmon(tmp_path), clock=machine.clock, rest=machine.clock.pass_by)
    machine.session.idle(5)
    (window,) = machine.session.power().idle
    assert (window.start_s, window.end_s) == (2.0, 7.0)


def test_a_driver_that_fails_falls_back_to_the_next_meter(tmp_path: Path) -> None:
    machine = Machinery(tmp_path)
    platform = zone(tmp_path, "intel-rapl:1", "psys", 1_000_000)
    machine.session = PowerSession(machine.clock(), meters=discover_rapl(tmp_path), clock=machine.clock)
    with machine.session as session:
        machine.spend(2, 20.0)
        platform.unlink()
        machine.spend(2, 20.0)
    power = session.power()
    assert power.headline == "rapl:package-0"
    assert next(trace.problem for trace in power.traces if trace.meter.name == "rapl:psys").startswith(f"{platform} cannot be read")


def test_real_time(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    found: list[Meter | AbsentMeter] = discover_rapl(tmp_path)
    origin = time.perf_counter()
    with PowerSession(origin, meters=found) as session:
        session.idle(0.1)
        put(counter, 6e6)
        start = time.perf_counter() - origin
        session.idle(0.1)
    assert session.power().traces[0].values[-1] == pytest.approx(1.0)
    assert session.power().traces[0].times_s[-1] > start


@pytest.mark.parametrize("watts", [0.0, -5.0, float("nan"), float("inf")])
def test_an_assumed_power_that_is_none(watts: float) -> None:
    with pytest.raises(InvalidRequestError, match="makes no sense"):
        PowerSession(0.0, assumed_w=watts, meters=())


def test_an_address_of_no_known_kind() -> None:
    with pytest.raises(InvalidRequestError, match="--meter is 'what'; give an address"):
        PowerSession(0.0, ["what"])
