from __future__ import annotations

from pathlib import Path

import pytest
from power_devices import write_tree

from edgelm.bench.power.base import AbsentMeter, Meter
from edgelm.bench.power.battery import discover_battery
from edgelm.errors import MeterError

LAPTOP = {"type": "Battery", "status": "Discharging", "present": 1, "power_now": 9_876_000, "energy_now": 40_000_000}
MAINS = {"type": "Mains", "online": 0}


def supplies(root: Path, **folders: dict[str, object]) -> Path:
    for name, files in folders.items():
        write_tree(root / "sys/class/power_supply" / name, files)
    return root


def the_meter(root: Path) -> Meter:
    (meter,) = discover_battery(root)
    assert not isinstance(meter, AbsentMeter), meter
    return meter


def why_not(root: Path) -> AbsentMeter:
    (absent,) = discover_battery(root)
    assert isinstance(absent, AbsentMeter)
    return absent


def test_watts_of_a_laptop(tmp_path: Path) -> None:
    meter = the_meter(supplies(tmp_path, BAT0=LAPTOP, AC=MAINS))
    assert meter.read().value == pytest.approx(9.876)
    assert (meter.info.scope, meter.info.quantity, meter.info.kind, meter.info.uncertainty) == ("device", "power", "measured", None)


@pytest.mark.parametrize("microamperes", [-450_000, 450_000])
def test_current_times_voltage_with_either_sign(tmp_path: Path, microamperes: int) -> None:
    battery = {"type": "Battery", "status": "Discharging", "current_now": microamperes, "voltage_now": 11_400_000}
    assert the_meter(supplies(tmp_path, BAT1=battery)).read().value == pytest.approx(0.45 * 11.4)


def test_two_batteries_of_which_one_gives(tmp_path: Path) -> None:
    resting = LAPTOP | {"status": "Not charging", "power_now": 0}
    assert the_meter(supplies(tmp_path, BAT0=resting, BAT1=LAPTOP)).read().value == pytest.approx(9.876)


def test_two_batteries_that_both_give(tmp_path: Path) -> None:
    assert the_meter(supplies(tmp_path, BAT0=LAPTOP, BAT1=LAPTOP)).read().value == pytest.approx(2 * 9.876)


def test_one_battery_that_charges_from_another(tmp_path: Path) -> None:
    charging = LAPTOP | {"status": "Charging"}
    assert "BAT0 is charging" in why_not(supplies(tmp_path, BAT0=charging, BAT1=LAPTOP)).reason


def test_a_phones_fuel_gauge_is_no_second_battery(tmp_path: Path) -> None:
    assert the_meter(supplies(tmp_path, battery=LAPTOP, maxfg=LAPTOP)).read().value == pytest.approx(9.876)


def test_what_it_holds_where_it_shows_no_power(tmp_path: Path) -> None:
    battery = {"type": "Battery", "status": "Discharging", "energy_now": 40_000_000}
    meter = the_meter(supplies(tmp_path, BAT0=battery))
    first = meter.read()
    supplies(tmp_path, BAT0={"energy_now": 39_990_000})
    second = meter.read()
    assert meter.info.quantity == "energy"
    assert second.value - first.value == pytest.approx(36.0)
    assert second.stamp == meter.read().stamp  # nothing new
    supplies(tmp_path, BAT0={"energy_now": 39_995_000})
    with pytest.raises(MeterError, match="holds more than before"):
        meter.read()


def test_charge_times_voltage_where_it_shows_no_energy(tmp_path: Path) -> None:
    meter = the_meter(
        supplies(tmp_path, BAT0={"type": "Battery", "status": "Discharging", "charge_now": 3_000_000, "voltage_now": 12_000_000})
    )
    first = meter.read()
    supplies(tmp_path, BAT0={"charge_now": 2_999_000})
    assert meter.read().value - first.value == pytest.approx(0.001 * 3600 * 12)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown", ""])
def test_only_while_it_discharges(tmp_path: Path, status: str) -> None:
    meter = the_meter(supplies(tmp_path, BAT0=LAPTOP, AC=MAINS))
    supplies(tmp_path, BAT0={"status": status})
    with pytest.raises(MeterError, match="pull the plug"):
        meter.read()
    assert "pull the plug" in (why_not(tmp_path).reason + why_not(tmp_path).advice)


def test_mains_that_are_plugged_in_meanwhile(tmp_path: Path) -> None:
    meter = the_meter(supplies(tmp_path, BAT0=LAPTOP, AC=MAINS))
    supplies(tmp_path, AC={"online": 1})
    with pytest.raises(MeterError, match="AC is online"):
        meter.read()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"power_now": 0}, "0 W"),
        ({"power_now": "n/a"}, "no number"),
        ({"current_now": 300, "voltage_now": 4_000_000, "power_now": None}, "another unit"),  # milliamperes
        ({"current_now": 300_000, "voltage_now": 4_000, "power_now": None}, "another unit"),  # millivolts
        ({"power_now": None, "energy_now": None}, "neither power nor current"),
    ],
)
def test_figures_that_cannot_be(tmp_path: Path, files: dict[str, object], said: str) -> None:
    wanted = {name: value for name, value in (LAPTOP | files).items() if value is not None}
    assert said in why_not(supplies(tmp_path, BAT0=wanted)).reason


def test_batteries_of_other_things_do_not_count(tmp_path: Path) -> None:
    mouse = LAPTOP | {"scope": "Device"}
    taken_out = LAPTOP | {"present": 0}
    charger = {"type": "USB", "online": 1, "scope": "Device"}
    assert "no battery" in why_not(supplies(tmp_path, hidpp_battery_0=mouse, BAT1=taken_out)).reason
    assert the_meter(supplies(tmp_path, BAT0=LAPTOP, headset=charger)).read().value == pytest.approx(9.876)
