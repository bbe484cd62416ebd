from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from power_devices import write_program, write_tree

from edgelm.bench.power import android
from edgelm.bench.power.android import discover_android, open_adb
from edgelm.bench.power.base import AbsentMeter, Meter
from edgelm.errors import MeterError

# termux-api 0.53 on a phone that lies on the table
TERMUX = {
    "present": True, "technology": "Li-ion", "health": "GOOD", "plugged": "UNPLUGGED", "status": "DISCHARGING", "temperature": 27.5,
    "voltage": 3921, "current": -512400, "current_average": -480000, "percentage": 66, "level": 66, "scale": 100,
}  # fmt: skip
DUMPSYS = """Current Battery Service state:
  AC powered: false
  USB powered: {usb}
  Wireless powered: false
  Dock powered: false
  Max charging current: 0
  Charge counter: 2841000
  status: {status}
  health: 2
  present: true
  level: 66
  scale: 100
  voltage: {voltage}
  temperature: 275
  technology: Li-ion
"""


def phone(root: Path) -> Path:
    return write_tree(root / "root", {"system/build.prop": "ro.build.version.sdk=34"})


def termux(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    answer = {key: value for key, value in (TERMUX | changes).items() if value is not ...}
    (folder / "answer").write_text(json.dumps(answer))
    write_program(folder, "termux-battery-status", f"cat {folder}/answer", monkeypatch)


def the_meter(root: Path) -> Meter:
    (meter,) = discover_android(root)
    assert not isinstance(meter, AbsentMeter), meter
    return meter


def adb(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    service: str = "-512400",
    sysfs: str = "",
    usb: str = "false",
    status: int = 3,
    voltage: int = 3921,
) -> None:
    """An adb whose phone tells its current by the battery service, by /sys, or not at all."""
    (folder / "dump").write_text(DUMPSYS.format(usb=usb, status=status, voltage=voltage))
    script = f"""echo "$@" >> {folder}/asked
case "$*" in
  *dumpsys*) cat {folder}/dump ;;
  *'cmd battery'*) echo '{service}' ;;
  *current_now*) [ -n '{sysfs}' ] && echo '{sysfs}' || {{ echo 'Permission denied' >&2; exit 1; }} ;;
esac"""
    write_program(folder, "adb", script, monkeypatch)


def error_of(text: str = "adb://") -> str:
    with pytest.raises(MeterError) as caught:
        open_adb(text)
    return str(caught.value)


def test_elsewhere_there_is_none(tmp_path: Path) -> None:
    (absent,) = discover_android(tmp_path)
    assert isinstance(absent, AbsentMeter)
    assert "adb://" in absent.reason


@pytest.mark.parametrize("current", [-512400, 512400])
def test_in_termux_with_either_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current: int) -> None:
    termux(tmp_path, monkeypatch, current=current)
    meter = the_meter(phone(tmp_path))
    assert meter.read().value == pytest.approx(0.5124 * 3.921)
    assert (meter.info.scope, meter.info.kind, meter.info.uncertainty) == ("device", "measured", None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": "CHARGING", "plugged": "PLUGGED_AC"}, "fed by PLUGGED_AC"),
        ({"status": "NOT_CHARGING"}, "not charging"),
        ({"status": "FULL"}, "full"),
        ({"plugged": "PLUGGED_USB"}, "fed by PLUGGED_USB"),
        ({"current": -5124}, "unit of the current"),
        ({"current": 0}, "unit of the current"),
        ({"voltage": 3_921_000}, "another unit"),
        ({"current": ...}, "tells no current"),
        ({"current": "much"}, "Termux:API"),
    ],
)
def test_in_termux_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str) -> None:
    termux(tmp_path, monkeypatch, **changes)
    (absent,) = discover_android(phone(tmp_path))
    assert isinstance(absent, AbsentMeter)
    assert said in absent.reason


def test_a_charger_plugged_in_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    termux(tmp_path, monkeypatch)
    meter = the_meter(phone(tmp_path))
    termux(tmp_path, monkeypatch, plugged="PLUGGED_WIRELESS")
    with pytest.raises(MeterError, match="PLUGGED_WIRELESS"):
        meter.read()


def test_in_termux_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (absent,) = discover_android(phone(tmp_path))
    assert isinstance(absent, AbsentMeter)
    assert "pkg install termux-api" in absent.advice


def test_a_program_that_hangs_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(android, "_TIMEOUT_S", 0.2)
    for script, said in (("exec sleep 5", "did not answer within"), ("echo no service >&2; exit 3", "no service"), ("echo hello", "hello")):
        write_program(tmp_path, "termux-battery-status", script, monkeypatch)
        (absent,) = discover_android(phone(tmp_path))
        assert isinstance(absent, AbsentMeter)
        assert said in absent.reason


def test_where_sys_can_be_read_the_battery_is_enough(tmp_path: Path) -> None:
    root = write_tree(phone(tmp_path), {"sys/class/power_supply/battery/voltage_now": 3_921_000})
    (absent,) = discover_android(root)
    assert isinstance(absent, AbsentMeter)
    assert "see the meter battery" in absent.reason


def test_by_adb_with_the_battery_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adb(tmp_path, monkeypatch)
    meter = open_adb("adb://R58M12ABCDE")
    assert meter.read().value == pytest.approx(0.5124 * 3.921)
    assert meter.info.name == "adb://R58M12ABCDE"
    assert "-s R58M12ABCDE shell" in (tmp_path / "asked").read_text()


def test_by_adb_with_sys_where_the_service_is_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adb(tmp_path, monkeypatch, service="Unknown get option: current_now", sysfs="-380000")
    assert open_adb("adb://192.168.1.30:5555").read().value == pytest.approx(0.38 * 3.921)


def test_milliamperes_are_refused_until_the_user_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adb(tmp_path, monkeypatch, service="321")
    assert "?unit=mA" in error_of()
    assert open_adb("adb://?unit=mA").read().value == pytest.approx(0.321 * 3.921)


def test_microamperes_taken_for_milliamperes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adb(tmp_path, monkeypatch)
    assert "unit of the current" in error_of("adb://?unit=mA")


@pytest.mark.parametrize(
    ("phone_says", "said"),
    [
        ({"usb": "true", "status": 2}, "fed by USB"),
        ({"usb": "true"}, "fed by USB"),
        ({"status": 5}, "full"),
        ({"status": 1}, "unknown"),
        ({"service": "", "sysfs": ""}, "does not tell"),
        ({"voltage": 0}, "none of a phone"),
    ],
)
def test_by_adb_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phone_says: dict[str, Any], said: str) -> None:
    adb(tmp_path, monkeypatch, **phone_says)
    assert said in error_of()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo \"error: device 'X' not found\" >&2; exit 1", "not found"),
        ("echo rubbish", "no voltage"),
        ("echo UPDATES STOPPED", "was stopped"),
    ],
)
def test_by_adb_without_a_sound_phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str) -> None:
    write_program(tmp_path, "adb", script, monkeypatch)
    assert said in error_of()


def test_without_adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "platform tools" in error_of()


@pytest.mark.parametrize("text", ["adb://a?unit=A", "adb://a/b", "adb://a?x=1", "adb://-a", "adb://a;reboot"])
def test_what_is_no_address(text: str) -> None:
    assert "adb" in error_of(text)
