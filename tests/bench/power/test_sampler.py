"""Meters read by threads: each at its own pace, to the end, and none left behind."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from power_machine import Clock, info, put

from edgelm.bench.power.base import Reading
from edgelm.bench.power.file_meter import FileMeter
from edgelm.bench.power.sampler import Sampler, TraceLog, read_into
from edgelm.bench.record import MeterInfo
from edgelm.errors import MeterError


class ScriptedMeter:
    """Says what it is told to, and tells when it was read."""

    wrap_j = None

    def __init__(self, *values: Reading | MeterError, name: str = "m", **fields: object) -> None:
        self.info: MeterInfo = info(name=name, **fields)
        self._values = list(values)
        self.n_read = threading.Semaphore(0)
        self.closed = False

    def read(self) -> Reading:
        value = self._values.pop(0) if len(self._values) > 1 else self._values[0]
        self.n_read.release()
        if isinstance(value, MeterError):
            raise value
        return value

    def close(self) -> None:
        self.closed = True


class HangingMeter(ScriptedMeter):
    """Answers only when it is allowed to."""

    def __init__(self) -> None:
        super().__init__(Reading(5.0), name="slow", quantity="power")
        self.may_answer = threading.Event()

    def read(self) -> Reading:
        self.may_answer.wait()
        return super().read()


def meter_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("meter ")]


def test_readings_are_stamped_at_the_middle_of_the_call() -> None:
    clock = Clock(100.0)

    class Slow(ScriptedMeter):
        def read(self) -> Reading:
            clock.pass_by(0.4)
            return super().read()

    meter = Slow(Reading(7.0), quantity="power")
    log = TraceLog(meter, origin=90.0)
    read_into(log, meter, clock)
    assert log.trace().times_s == (pytest.approx(10.2),)
    assert log.trace().values == (7.0,)


def test_the_same_stamp_is_no_new_value() -> None:
    clock = Clock()
    meter = ScriptedMeter(Reading(5.0, 1), Reading(5.0, 1), Reading(5.0, 2), quantity="power")
    log = TraceLog(meter, clock())
    for _ in range(3):
        clock.pass_by(1.0)
        read_into(log, meter, clock)
    assert log.trace().times_s == (1.0, 3.0)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([Reading(5.0), MeterError("it does not answer")], "it does not answer (2.0 s after the start)"),
        ([Reading(5.0), MeterError("m did not answer")], "it did not answer (2.0 s after the start)"),
        ([Reading(5.0), MeterError("m: the phone is full")], "the phone is full (2.0 s after the start)"),
        ([Reading(5.0), Reading(3.0)], "its counter went back from 5.000 to 3.000 J: it was reset (2.0 s after the start)"),
        ([Reading(5.0), Reading(float("nan"))], "its counter reads nan J (2.0 s after the start)"),
    ],
)
def test_a_meter_that_fails_ends_its_trace(values: list[Reading | MeterError], problem: str) -> None:
    clock = Clock()
    meter = ScriptedMeter(*values, Reading(100.0))
    log = TraceLog(meter, clock())
    for _ in range(3):
        clock.pass_by(1.0)
        read_into(log, meter, clock)
    assert log.trace().values == (0.0,)
    assert log.trace().problem == problem


@pytest.mark.parametrize("watts", [-1.0, float("inf"), 4001.0])
def test_what_is_no_power_ends_the_trace(watts: float) -> None:
    clock = Clock()
    meter = ScriptedMeter(Reading(watts), quantity="power")
    log = TraceLog(meter, clock())
    read_into(log, meter, clock)
    assert "it shows" in log.trace().problem


def test_from_first_reading_to_last(tmp_path: Path) -> None:
    file = tmp_path / "energy_uj"
    file.write_text("1000000")
    origin = time.perf_counter()
    with Sampler([FileMeter(info(), file)], origin) as sampler:
        inside = time.perf_counter() - origin
        put(file, 3e6)
        sampler.read_now()
        assert sampler.traces()[0].values[-1] == pytest.approx(2.0)
        put(file, 4e6)
        end = time.perf_counter() - origin
    said = sampler.traces()[0]
    assert said.times_s[0] < inside < end < said.times_s[-1]
    assert (said.values[0], said.values[-1]) == (0.0, pytest.approx(3.0))
    assert meter_threads() == []


def test_a_meter_that_hangs_delays_no_other_and_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgelm.bench.power.sampler._FIRST_READING_S", 0.2)
    monkeypatch.setattr("edgelm.bench.power.sampler._LAST_READING_S", 0.2)
    slow, fast = HangingMeter(), ScriptedMeter(Reading(5.0), name="fast", quantity="power")
    sampler = Sampler([slow, fast], time.perf_counter())
    try:
        sampler.start()
        for _ in range(4):
            assert fast.n_read.acquire(timeout=10)
        sampler.stop()
        said, kept = sampler.traces()
        assert "did not answer any more" in said.problem
        assert kept.problem == ""
        assert fast.closed
    finally:
        slow.may_answer.set()
        for thread in threading.enumerate():
            if thread.name.startswith("meter "):
                thread.join(10)
    assert slow.closed
    assert sampler.traces()[0].values == ()  # what came too late is not taken


def test_ctrl_c_leaves_no_thread() -> None:
    meters = [ScriptedMeter(Reading(5.0), name=f"m{n}", quantity="power") for n in range(3)]

    def interrupted() -> None:
        with Sampler(meters, time.perf_counter()):
            assert len(meter_threads()) == 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert meter_threads() == []
    assert all(meter.closed for meter in meters)


def test_ctrl_c_while_a_meter_is_waited_for_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgelm.bench.power.sampler._wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Sampler([ScriptedMeter(Reading(5.0), quantity="power")], time.perf_counter()).start()
    assert meter_threads() == []


def test_stop_before_start_and_twice() -> None:
    sampler = Sampler([ScriptedMeter(Reading(5.0), quantity="power")], time.perf_counter())
    sampler.stop()
    sampler.start()
    sampler.stop()
    sampler.stop()
    assert meter_threads() == []
