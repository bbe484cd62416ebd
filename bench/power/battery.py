"""Batteries of laptops, handhelds and phones by /sys/class/power_supply (kernel: Documentation/ABI/testing/sysfs-class-power).

What a battery gives is what the device takes only while nothing else feeds it, so every reading checks that first. Drivers disagree on the
sign of current_now and power_now while discharging (the kernel asks for a negative current since 5.10, older drivers say positive), so the
direction is taken from `status` alone. Units are micro: uV, uA, uW, uAh, uWh.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from edgelm.bench.power.base import AbsentMeter, Meter, Reading
from edgelm.bench.power.sysfs import read_number, read_word
from edgelm.bench.record import MeterInfo
from edgelm.errors import MeterError

_SOURCE = "the fuel gauge in the battery; no maker states its accuracy"
_ADVICE = "pull the plug and let it run from the battery while it is measured"
_PERIOD_S = 1.0
_COUNTER_PERIOD_S = 30.0
_RESTING = ("Full", "Not charging", "Unknown")
_PLAUSIBLE_V = (1.0, 1000.0)
_PLAUSIBLE_W = (0.05, 1000.0)


class Battery:
    """One battery's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name

    def has(self, *files: str) -> bool:
        return all((self.folder / file).exists() for file in files)

    def number(self, file: str) -> float:
        return read_number(self.folder / file)

    @property
    def status(self) -> str:
        return read_word(self.folder / "status")

    @property
    def volts(self) -> float:
        volts = self.number("voltage_now") * 1e-6
        if not _PLAUSIBLE_V[0] <= volts <= _PLAUSIBLE_V[1]:
            raise MeterError(f"{self.folder}/voltage_now says {volts:g} V, which no battery has; its driver uses another unit")
        return volts

    @property
    def watts(self) -> float:
        """What it gives now. Raises MeterError."""
        watts = abs(self.number("power_now")) * 1e-6 if self.has("power_now") else abs(self.number("current_now")) * 1e-6 * self.volts
        check_watts(watts, str(self.folder))
        return watts


class BatteryPower:
    """All batteries of a device together, by the power they show."""

    wrap_j = None

    def __init__(self, batteries: list[Battery], root: Path) -> None:
        self.info = _info("power", _PERIOD_S, batteries)
        self._batteries = batteries
        self._root = root

    def read(self) -> Reading:
        return Reading(sum(battery.watts for battery in giving(self._batteries, self._root)))

    def close(self) -> None:
        pass


class BatteryCounter:
    """All batteries together by the charge they hold, where their drivers show no power: coarse, and new every half minute or so."""

    wrap_j = None

    def __init__(self, batteries: list[Battery], root: Path) -> None:
        self.info = _info("energy", _COUNTER_PERIOD_S, batteries)
        self._batteries = batteries
        self._root = root
        self._last: dict[str, float] = {}
        self._given_j = 0.0

    def read(self) -> Reading:
        giving(self._batteries, self._root)
        for battery in self._batteries:
            self._given_j += self._gave(battery)
        return Reading(self._given_j, stamp=self._given_j)

    def _gave(self, battery: Battery) -> float:
        """Joules that it gave since the last reading."""
        has_energy = battery.has("energy_now")
        held = battery.number("energy_now" if has_energy else "charge_now") * 1e-6 * 3600  # J, or ampere seconds
        gave = self._last.get(battery.name, held) - held
        self._last[battery.name] = held
        if gave < 0:
            raise MeterError(f"{battery.folder} holds more than before although it is discharging; its gauge was corrected meanwhile")
        return gave if has_energy else gave * battery.volts

    def close(self) -> None:
        pass


def discover_battery(root: Path = Path("/")) -> list[Meter | AbsentMeter]:
    """One meter of all the batteries that feed this device."""
    if sys.platform not in ("linux", "android"):
        return [AbsentMeter("battery", "no /sys/class/power_supply on this system")]
    try:
        batteries = _batteries(root)
        if not batteries:
            return [AbsentMeter("battery", "this device shows no battery under /sys/class/power_supply")]
        meter = _open(batteries, root)
        meter.read()
    except MeterError as error:
        return [AbsentMeter("battery", str(error), "" if _ADVICE in str(error) else _ADVICE)]
    return [meter]


def giving(batteries: list[Battery], root: Path) -> list[Battery]:
    """The batteries that feed the device now.

    Raises:
        MeterError: something else feeds it, or none of them is discharging.
    """
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        if (supply / "online").exists() and _is_of_system(supply) and read_number(supply / "online") > 0:
            raise MeterError(f"the device is on mains or charging ({supply.name} is online), so that the battery shows nothing; {_ADVICE}")
    found = []
    for battery in batteries:
        status = battery.status
        if status == "Discharging":
            found.append(battery)
        elif status not in _RESTING:
            raise MeterError(f"{battery.name} is {status.lower() or 'in no state that its driver names'}; {_ADVICE}")
    if not found:
        states = ", ".join(f"{battery.name}: {battery.status}" for battery in batteries)
        raise MeterError(f"no battery is discharging ({states}); {_ADVICE}")
    return found


def check_watts(watts: float, where: str) -> None:
    """Refuse what no computing device takes: most such figures are of another unit than documented.

    Raises:
        MeterError: too little or too much.
    """
    if not _PLAUSIBLE_W[0] <= watts <= _PLAUSIBLE_W[1]:
        raise MeterError(f"{where} shows {watts:.4g} W, which no running device takes; its driver uses another unit, or has no reading")


def _open(batteries: list[Battery], root: Path) -> Meter:
    if all(battery.has("power_now") or battery.has("current_now", "voltage_now") for battery in batteries):
        return BatteryPower(batteries, root)
    if all(battery.has("energy_now") or battery.has("charge_now", "voltage_now") for battery in batteries):
        return BatteryCounter(batteries, root)
    names = ", ".join(battery.name for battery in batteries)
    raise MeterError(f"{names} shows neither power nor current with voltage nor what it holds; measure with a meter outside")


def _batteries(root: Path) -> list[Battery]:
    folders = sorted((root / "sys/class/power_supply").glob("*"))
    found = [Battery(folder) for folder in folders if _is_battery(folder)]
    # Android calls the phone's one battery so; fuel gauges beside it show the same battery again
    return [battery for battery in found if battery.name == "battery"] or found


def _is_battery(folder: Path) -> bool:
    if not (folder / "type").exists() or read_word(folder / "type") != "Battery" or not _is_of_system(folder):
        return False
    return not (folder / "present").exists() or read_number(folder / "present") > 0


def _is_of_system(folder: Path) -> bool:
    """Whether it feeds the device, rather than a mouse or headphones beside it."""
    return not (folder / "scope").exists() or read_word(folder / "scope") != "Device"


def _info(quantity: Literal["power", "energy"], period_s: float, batteries: list[Battery]) -> MeterInfo:
    names = " + ".join(battery.name for battery in batteries)
    return MeterInfo("battery", f"whole device, from its battery ({names})", "device", "measured", quantity, period_s, source=_SOURCE)
