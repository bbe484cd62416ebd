"""Sensors of Linux's hardware monitoring (/sys/class/hwmon) that show energy or power.

energyN_input is a counter in microjoules, powerN_input and powerN_average are microwatts, powerN_label and energyN_label name the rail
(https://docs.kernel.org/hwmon/sysfs-interface.html). The kernel does not say what a sensor covers; for drivers that edgebench knows it is
in `_DRIVERS`, all others are components of unknown extent, which are shown, but seldom the headline.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgelm.bench.power.base import AbsentMeter, Meter
from edgelm.bench.power.file_meter import FileMeter
from edgelm.bench.power.summed import SummedMeter
from edgelm.bench.power.sysfs import UnreadableError, read_number, read_optional
from edgelm.bench.record import Kind, MeterInfo
from edgelm.errors import MeterError

Scope = Literal["component", "package", "module", "device", "wall"]

_SENSOR = re.compile(r"(energy|power)(\d+)_(input|average)")
_PERIOD_S = 0.1
_MAX_PERIOD_S = 10.0
_JETSON_DRIVERS = {"ina3221", "ina238"}
_ADVICE = "run edgebench as root, or: sudo chmod a+r {path} (until the next boot)"


@dataclass(frozen=True)
class _Driver:
    """What a driver's sensors are.

    Attributes:
        domain: in words; {label} is the sensor's own name.
        scopes: by label, for those that are more than a component.
        skip: labels that are not worth a meter.
    """

    domain: str
    kind: Kind
    source: str
    scopes: tuple[tuple[str, Scope], ...] = ()
    skip: str = ""

    def scope(self, label: str) -> Scope:
        return next((scope for pattern, scope in self.scopes if re.fullmatch(pattern, label)), "component")


_SHUNT = "a current shunt; its tolerance, which the kernel does not know, is most of the uncertainty"
_INA = _Driver("rail {label}", "measured", _SHUNT)
_SMC = "Apple's system management controller; Apple publishes neither method nor uncertainty"
_DRIVERS: dict[str, _Driver] = {
    # of an APU, the fast limit's sensor covers the whole package with a mean over 10 ms; the slow one's mean is over 5 s
    "amdgpu": _Driver(
        "AMD GPU {label}", "vendor model", "AMD's own telemetry, of unpublished uncertainty", (("fastPPT", "package"),), "slowPPT"
    ),
    "amd_energy": _Driver(
        "CPU {label}", "vendor model", "Schöne et al. 2021 (arXiv:2108.00808): modelled", ((r"Esocket\d+", "package"),), r"Ecore\d+"
    ),
    "fam15h_power": _Driver("CPU package", "vendor model", "AMD's own estimate", ((".*", "package"),)),
    "macsmc_hwmon": _Driver("Mac: {label}", "vendor model", _SMC, (("Total System Power", "device"),)),
    "power_meter": _Driver("whole machine, by ACPI", "measured", "the machine's firmware (ACPI 4.0, 10.4)", ((".*", "device"),)),
    "i915": _Driver("Intel GPU {label}", "vendor model", "Intel's own counter, of unpublished uncertainty"),
    "xe": _Driver("Intel GPU {label}", "vendor model", "Intel's own counter, of unpublished uncertainty"),
    "corsairpsu": _Driver("power supply: {label}", "measured", "the power supply's own telemetry", (("power total", "device"),)),
    **dict.fromkeys(("ina209", "ina219", "ina220", "ina226", "ina228", "ina230", "ina231", "ina233", "ina234", "ina237", "ina238"), _INA),
    **dict.fromkeys(("ina260", "ina700", "ina780"), _Driver("rail {label}", "measured", "a current shunt in the chip")),
}
_UNKNOWN = _Driver("{driver} {label}", "vendor model", "the kernel does not tell what it covers, nor how well")


def discover_hwmon(root: Path) -> list[Meter | AbsentMeter]:
    """Every sensor of energy or power that no other kind of meter takes: not those of batteries and of Jetson boards."""
    base = root / "sys/class/hwmon"
    try:
        chips = sorted(base.iterdir(), key=lambda chip: (len(chip.name), chip.name))
    except OSError:
        return [AbsentMeter("hwmon", f"no {base}")]
    supplies = {supply.name for supply in (root / "sys/class/power_supply").glob("*")}
    is_jetson = "nvidia,tegra" in (read_optional(root / "proc/device-tree/compatible") or "")
    found: list[Meter | AbsentMeter] = []
    names: dict[str, int] = {}
    for chip in chips:
        driver = read_optional(chip / "name") or ""
        # a battery shows its figures here once more, under the name it has as a power supply
        if not driver or driver in supplies or driver == "ina3221" or (is_jetson and driver in _JETSON_DRIVERS):
            continue
        n_before = names.get(driver, 0)
        sensors = _sensors(chip, driver, f"hwmon:{driver}{f'-{n_before + 1}' if n_before else ''}")
        names[driver] = n_before + bool(sensors)
        found += _with_sum(sensors)
    return found or [AbsentMeter("hwmon", f"no sensor under {base} shows energy or power")]


def _sensors(chip: Path, driver: str, prefix: str) -> list[FileMeter | AbsentMeter]:
    """One meter for each sensor of a chip; its mean before its momentary value, where it has both."""
    files: dict[tuple[Literal["energy", "power"], int], str] = {}
    for path in chip.iterdir():
        match = _SENSOR.fullmatch(path.name)
        if match:
            quantity: Literal["energy", "power"] = "energy" if match[1] == "energy" else "power"
            key = quantity, int(match[2])
            files[key] = min(files.get(key, path.name), path.name)  # "average" comes before "input"
    known = _DRIVERS.get(driver, _UNKNOWN)
    found: list[FileMeter | AbsentMeter] = []
    for (quantity, number), file in sorted(files.items()):
        label = read_optional(chip / f"{quantity}{number}_label") or f"{quantity}{number}"
        if not re.fullmatch(known.skip, label):
            domain = known.domain.format(driver=driver, label=label)
            info = MeterInfo(f"{prefix}/{label}", domain, known.scope(label), known.kind, quantity, _PERIOD_S, source=known.source)
            found.append(_open(chip / file, info))
    return found


def _open(path: Path, info: MeterInfo) -> FileMeter | AbsentMeter:
    """Open and read once."""
    meter = FileMeter(replace(info, period_s=_period_s(path), uncertainty=_uncertainty(path)), path)
    try:
        meter.read()
    except UnreadableError as error:
        return AbsentMeter(info.name, str(error), _ADVICE.format(path=path))
    except MeterError as error:
        return AbsentMeter(info.name, str(error))
    return meter


def _period_s(path: Path) -> float:
    """How often the sensor has a new value, as its driver says in milliseconds; most say nothing."""
    stem = path.name.partition("_")[0]
    for file in (f"{stem}_average_interval", "update_interval"):
        seconds = _number(path.parent / file)
        if seconds is not None and seconds > 0:
            return min(seconds / 1000, _MAX_PERIOD_S)
    return _PERIOD_S


def _uncertainty(path: Path) -> float | None:
    """What an ACPI meter says of itself, such as 95.0% (of accuracy)."""
    match = re.fullmatch(r"([\d.]+)%", read_optional(path.parent / f"{path.name.partition('_')[0]}_accuracy") or "")
    return 1 - float(match[1]) / 100 if match and 0 < float(match[1]) <= 100 else None


def _number(path: Path) -> float | None:
    try:
        return read_number(path)
    except MeterError:
        return None


def _with_sum(sensors: list[FileMeter | AbsentMeter]) -> list[Meter | AbsentMeter]:
    """The sensors; before the sockets of one chip their sum. A socket that cannot be read leaves none, as its sum would be too small."""
    sockets = [
        meter for meter in sensors if isinstance(meter, FileMeter) and (meter.info.scope, meter.info.quantity) == ("package", "energy")
    ]
    if len(sockets) < 2:
        return list(sensors)
    if any(isinstance(meter, AbsentMeter) for meter in sensors):
        return [meter for meter in sensors if meter not in sockets]
    name = f"{sockets[0].info.name.partition('/')[0]}/packages"
    for meter in sockets:
        meter.info = replace(meter.info, within=name)
    return [SummedMeter(name, f"CPU, all {len(sockets)} packages", sockets), *sensors]
