"""Hardware monitoring on made-up trees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from power_machine import Curve, chip, play

from edgelm.bench.power.base import AbsentMeter, Meter
from edgelm.bench.power.energy import integrate
from edgelm.bench.power.hwmon import discover_hwmon
from edgelm.bench.record import Window


def meters(found: Sequence[Meter | AbsentMeter]) -> dict[str, Meter]:
    return {meter.info.name: meter for meter in found if not isinstance(meter, AbsentMeter)}


def test_power_in_microwatts_and_energy_in_microjoules(tmp_path: Path) -> None:
    chip(tmp_path, 0, "ina226", power1_input=2_500_000, power1_label="VDD_CPU", update_interval=20)
    chip(tmp_path, 1, "xe", energy1_input=7_000_000, energy1_label="card")
    found = meters(discover_hwmon(tmp_path))
    rail, card = found["hwmon:ina226/VDD_CPU"], found["hwmon:xe/card"]
    assert rail.read().value == pytest.approx(2.5)
    assert (rail.info.domain, rail.info.scope, rail.info.kind, rail.info.quantity) == ("rail VDD_CPU", "component", "measured", "power")
    assert rail.info.period_s == pytest.approx(0.02)
    assert card.read().value == pytest.approx(7.0)
    assert (card.info.quantity, card.wrap_j) == ("energy", None)


def test_known_drivers(tmp_path: Path) -> None:
    chip(
        tmp_path,
        0,
        "macsmc_hwmon",
        power1_input=9_000_000,
        power1_label="Total System Power",
        power2_input=1,
        power2_label="Heatpipe Power",
    )
    chip(tmp_path, 1, "amdgpu", power1_average=5_000_000, power1_input=6_000_000, power1_label="PPT")
    chip(tmp_path, 2, "power_meter", power1_average=80_000_000, power1_average_interval=1000, power1_accuracy="95.0%")
    found = meters(discover_hwmon(tmp_path))
    assert found["hwmon:macsmc_hwmon/Total System Power"].info.scope == "device"
    assert found["hwmon:macsmc_hwmon/Heatpipe Power"].info.scope == "component"
    assert found["hwmon:amdgpu/PPT"].read().value == pytest.approx(5.0)
    acpi = found["hwmon:power_meter/power1"].info
    assert (acpi.scope, acpi.period_s) == ("device", 1.0)
    assert acpi.uncertainty == pytest.approx(0.05)


def test_the_slow_mean_of_an_apu_is_left_out(tmp_path: Path) -> None:
    chip(tmp_path, 0, "amdgpu", power1_average=1, power1_label="slowPPT", power2_average=1, power2_label="fastPPT")
    found = meters(discover_hwmon(tmp_path))
    assert list(found) == ["hwmon:amdgpu/fastPPT"]
    assert found["hwmon:amdgpu/fastPPT"].info.scope == "package"


def test_sockets_of_amd_energy_are_summed_and_cores_left_out(tmp_path: Path) -> None:
    files = {f"energy{n}_input": n * 1_000_000 for n in range(1, 5)}
    labels = {"energy1_label": "Ecore000", "energy2_label": "Ecore001", "energy3_label": "Esocket0", "energy4_label": "Esocket1"}
    folder = chip(tmp_path, 0, "amd_energy", **files, **labels)
    found = meters(discover_hwmon(tmp_path))
    whole = "hwmon:amd_energy/packages"
    assert {name: meter.info.within for name, meter in found.items()} == {
        whole: None,
        "hwmon:amd_energy/Esocket0": whole,
        "hwmon:amd_energy/Esocket1": whole,
    }
    before = found[whole].read().value
    (folder / "energy3_input").write_text("5000000")
    (folder / "energy4_input").write_text("4500000")
    assert found[whole].read().value - before == pytest.approx(2.5)


def test_a_socket_that_cannot_be_read_leaves_none(tmp_path: Path) -> None:
    folder = chip(tmp_path, 0, "amd_energy", energy1_input=1, energy1_label="Esocket0", energy2_input="", energy2_label="Esocket1")
    (folder / "energy3_input").write_text("1")
    (folder / "energy3_label").write_text("Esocket2")
    assert meters(discover_hwmon(tmp_path)) == {}


def test_what_others_take_is_left_to_them(tmp_path: Path) -> None:
    chip(tmp_path, 0, "ina3221", power1_input=1)
    chip(tmp_path, 1, "BAT0", power1_input=1)
    chip(tmp_path, 2, "ina238", power1_input=1)
    (tmp_path / "sys/class/power_supply/BAT0").mkdir(parents=True)
    assert list(meters(discover_hwmon(tmp_path))) == ["hwmon:ina238/power1"]
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"nvidia,p3768\0nvidia,tegra264\0")
    assert meters(discover_hwmon(tmp_path)) == {}


def test_two_chips_of_one_driver_have_two_names(tmp_path: Path) -> None:
    chip(tmp_path, 2, "ina226", power1_input=1)
    chip(tmp_path, 10, "ina226", power1_input=1)
    assert list(meters(discover_hwmon(tmp_path))) == ["hwmon:ina226/power1", "hwmon:ina226-2/power1"]


def test_sensors_that_fail_are_told(tmp_path: Path) -> None:
    chip(tmp_path, 0, "ina226", power1_input="off")
    (found,) = discover_hwmon(tmp_path)
    assert isinstance(found, AbsentMeter)
    assert "'off', which is no number" in found.reason


@pytest.mark.parametrize("has_folder", [True, False])
def test_nothing_there(tmp_path: Path, has_folder: bool) -> None:
    if has_folder:
        chip(tmp_path, 0, "coretemp", temp1_input=40_000)
    (found,) = discover_hwmon(tmp_path)
    assert isinstance(found, AbsentMeter)
    assert ("no sensor under" in found.reason) == has_folder


def test_a_known_curve_is_recovered(tmp_path: Path) -> None:
    folder = chip(tmp_path, 0, "ina226", power1_input=0, update_interval=20)
    meter = meters(discover_hwmon(tmp_path))["hwmon:ina226/power1"]
    integral, reason = integrate(play(meter, folder / "power1_input", Curve(), 10, 0.02), [Window(1.5, 8.25)])
    assert integral is not None, reason
    assert integral.joules == pytest.approx(Curve().joules(8.25) - Curve().joules(1.5), rel=0.01)
