from __future__ import annotations

from pathlib import Path

import pytest
from power_devices import write_tree

from edgelm.bench.power.base import AbsentMeter, Meter
from edgelm.bench.power.jetson import discover_jetson
from edgelm.errors import MeterError

ORIN_NANO = {"VDD_IN": (5040, 1200), "VDD_CPU_GPU_CV": (5032, 300), "VDD_SOC": (5032, 250)}
AGX_ORIN_40 = {"VDD_GPU_SOC": (19808, 160), "VDD_CPU_CV": (19808, 40), "VIN_SYS_5V0": (4968, 953)}
AGX_ORIN_41 = {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (4968, 220)}


def ina3221(number: int, rails: dict[str, tuple[int, int]]) -> dict[str, object]:
    chip = f"sys/class/hwmon/hwmon{number}"
    files: dict[str, object] = {f"{chip}/name": "ina3221", f"{chip}/in7_label": "sum of shunt voltages", f"{chip}/curr4_input": 9999}
    for n, (label, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        files |= {f"{chip}/in{n}_label": label, f"{chip}/in{n}_input": millivolts, f"{chip}/curr{n}_input": milliamperes}
    return files


def board(root: Path, model: str, *chips: dict[str, object]) -> Path:
    write_tree(root, {"proc/device-tree/model": f"{model}\0"})
    for chip in chips:
        write_tree(root, chip)
    return root


def meters(root: Path) -> dict[str, Meter]:
    return {meter.info.name: meter for meter in discover_jetson(root) if not isinstance(meter, AbsentMeter)}


def test_the_module_input_is_the_total_where_there_is_one(tmp_path: Path) -> None:
    found = meters(board(tmp_path, "NVIDIA Jetson Orin Nano Developer Kit", ina3221(1, ORIN_NANO)))
    total = found["jetson:VDD_IN"]
    assert total.read().value == pytest.approx(5.040 * 1.2)
    assert (total.info.scope, total.info.within, total.info.kind, total.info.quantity) == ("module", None, "measured", "power")
    assert "Orin Nano" in total.info.domain
    assert "without its carrier" in total.info.domain
    assert {name: meter.info.within for name, meter in found.items() if name != "jetson:VDD_IN"} == {
        "jetson:VDD_CPU_GPU_CV": "jetson:VDD_IN",
        "jetson:VDD_SOC": "jetson:VDD_IN",
    }


def test_agx_orin_adds_its_inputs_and_not_the_memory_that_hangs_below_one_of_them(tmp_path: Path) -> None:
    found = meters(board(tmp_path, "NVIDIA Jetson AGX Orin Developer Kit", ina3221(1, AGX_ORIN_40), ina3221(2, AGX_ORIN_41)))
    assert found["jetson:total"].read().value == pytest.approx(19.808 * 0.2 + 4.968 * 0.953)
    assert found["jetson:total"].info.scope == "module"
    assert found["jetson:VDDQ_VDD2_1V8AO"].info.within == "jetson:VIN_SYS_5V0"
    assert found["jetson:VDD_CPU_CV"].info.within == "jetson:total"
    assert "jetson:NC" not in found


def test_agx_xavier_adds_six_supplies_by_the_older_paths(tmp_path: Path) -> None:
    rails = ["GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"]
    files: dict[str, object] = {}
    for number, label in enumerate(rails):
        chip = f"sys/bus/i2c/drivers/ina3221x/1-004{number // 3}/iio:device{number // 3}"
        files |= {f"{chip}/rail_name_{number % 3}": label, f"{chip}/in_power{number % 3}_input": 100 * (number + 1)}
    assert meters(board(tmp_path, "Jetson-AGX", files))["jetson:total"].read().value == pytest.approx(2.1)


def test_nano_by_the_older_paths_without_a_power_file(tmp_path: Path) -> None:
    chip = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files = {f"{chip}/rail_name_0": "POM_5V_IN", f"{chip}/in_voltage0_input": 5000, f"{chip}/in_current0_input": 600}
    files |= {f"{chip}/rail_name_1": "POM_5V_GPU", f"{chip}/in_voltage1_input": 5000, f"{chip}/in_current1_input": 100}
    found = meters(board(tmp_path, "NVIDIA Jetson Nano Developer Kit", files))
    assert found["jetson:POM_5V_IN"].read().value == pytest.approx(3.0)
    assert found["jetson:POM_5V_GPU"].info.within == "jetson:POM_5V_IN"


def test_thor_takes_the_input_of_module_and_carrier(tmp_path: Path) -> None:
    vin = "sys/class/hwmon/hwmon5"
    files = {f"{vin}/name": "ina238", f"{vin}/label": "VIN", f"{vin}/power1_input": 42_500_000, f"{vin}/update_interval": 67}
    rails = {"VDD_GPU": (19000, 800), "VDD_CPU_SOC_MSS": (19000, 300), "VIN_SYS_5V0": (5000, 1300)}
    found = meters(board(tmp_path, "NVIDIA Jetson AGX Thor Developer Kit", files, ina3221(4, rails)))
    assert found["jetson:VIN"].read().value == pytest.approx(42.5)
    assert (found["jetson:VIN"].info.scope, found["jetson:VIN"].info.period_s) == ("device", 0.067)
    assert found["jetson:VDD_GPU"].info.within == "jetson:VIN"


def test_thor_on_a_carrier_without_that_chip_has_no_total(tmp_path: Path) -> None:
    rails = {"VDD_GPU": (19000, 800), "VDD_CPU_SOC_MSS": (19000, 300), "VIN_SYS_5V0": (5000, 1300)}
    found = discover_jetson(board(tmp_path, "NVIDIA Jetson AGX Thor", ina3221(4, rails)))
    refused = found[0]
    assert isinstance(refused, AbsentMeter)
    assert "do not add up to a whole that NVIDIA documents" in refused.reason
    assert "plug" in refused.advice
    assert {meter.info.scope for meter in found if not isinstance(meter, AbsentMeter)} == {"component"}


def test_the_carrier_of_a_tx2_is_not_within_its_module(tmp_path: Path) -> None:
    chips = [ina3221(0, {"VDD_IN": (19000, 300), "VDD_SYS_CPU": (19000, 50)}), ina3221(1, {"VDD_MUX": (19000, 500)})]
    found = meters(board(tmp_path, "NVIDIA Jetson TX2 Developer Kit", *chips))
    assert found["jetson:VDD_MUX"].info.within is None
    assert found["jetson:VDD_SYS_CPU"].info.within == "jetson:VDD_IN"


def test_a_switched_off_channel_is_left_out(tmp_path: Path) -> None:
    root = board(tmp_path, "NVIDIA Jetson Orin NX", ina3221(1, ORIN_NANO), {"sys/class/hwmon/hwmon1/in3_enable": 0})
    assert "jetson:VDD_SOC" not in meters(root)


@pytest.mark.parametrize(
    ("file", "text", "said"), [("curr1_input", "garbage", "no number"), ("in1_input", "0", "0.000 W"), ("in1_input", None, "read")]
)
def test_a_rail_that_reads_nonsense_is_an_error(tmp_path: Path, file: str, text: str | None, said: str) -> None:
    total = meters(board(tmp_path, "NVIDIA Jetson Orin NX", ina3221(1, ORIN_NANO)))["jetson:VDD_IN"]
    path = tmp_path / "sys/class/hwmon/hwmon1" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(MeterError, match=said):
        total.read()


@pytest.mark.parametrize("model", [None, "Raspberry Pi 5 Model B Rev 1.0", "NVIDIA Jetson Nano 2GB Developer Kit"])
def test_what_is_missing_is_said(tmp_path: Path, model: str | None) -> None:
    (absent,) = discover_jetson(board(tmp_path, model) if model else tmp_path)
    assert isinstance(absent, AbsentMeter)
    assert (model or "no Jetson") in absent.reason
