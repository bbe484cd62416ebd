"""NVIDIA Jetson: power rails measured by the INA3221 chips on the module and the INA238 on Thor's carrier board.

Which rails contain which is NVIDIA's to say, and differs by board; the figure of a whole module is only given where it is documented.
Sources: "Software-Based Power Consumption Modeling" in the Jetson Linux Developer Guide, and of forums.developer.nvidia.com/t/NUMBER:

- TX1, TX2, Xavier NX, Orin Nano, Orin NX: VDD_IN is the module's input (200883);
- Nano: POM_5V_IN is the input and contains the others (73608);
- AGX Xavier: six supplies side by side (Product Design Guide DG-09840, 5.6.2; 81016);
- AGX Orin: SYS_VIN_HV feeds GPU, SoC, CPU and CV, SYS_VIN_MV feeds VIN_SYS_5V0, and that feeds VDDQ_VDD2_1V8AO (223111);
- AGX Thor: the INA238 measures VIN, the input of module and carrier board (366461).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgelm.bench.power.base import AbsentMeter, Meter, Reading
from edgelm.bench.power.sysfs import read_number, read_optional, read_word
from edgelm.bench.record import MeterInfo
from edgelm.errors import MeterError

_SOURCE = (
    "TI's data sheets (SBOS576, SBOSA20): gain within 0.5%, but an offset of up to 80 uV across 2 or 5 milliohm,"
    " so that no one relative figure holds; NVIDIA states none for the board"
)
_PERIOD_S = 0.1  # where the driver does not tell its own
_ON_CARRIER = re.compile(r"VDD_MUX|VDD_5V0?_IO_SYS|VDD_3V3|VDD_1V8_IO|VDD_M2|CVB_")


@dataclass(frozen=True)
class _Total:
    """Rails that side by side, none within another, carry all that a part of the machine takes."""

    rails: tuple[str, ...]
    scope: Literal["module", "device"]
    covers: str


_TOTALS = (
    _Total(("VIN",), "device", "module and carrier board"),
    _Total(("VDD_IN",), "module", "whole module without its carrier board"),
    _Total(("POM_5V_IN",), "module", "whole module without its carrier board"),
    _Total(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), "module", "whole module without its carrier board"),
    _Total(("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), "module", "whole module without its carrier board"),
)
_WITHIN = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}


@dataclass(frozen=True)
class Rail:
    """One channel of a chip.

    Attributes:
        power: file of the power, None where only voltage (mV) and current (mA) are there.
        power_unit_w: watts of the power file's unit.
        period_s: of the chip's conversions.
    """

    label: str
    millivolts: Path
    milliamperes: Path
    power: Path | None
    power_unit_w: float
    period_s: float

    def watts(self) -> float:
        """Now. Raises MeterError."""
        if self.power is not None:
            return read_number(self.power) * self.power_unit_w
        return read_number(self.millivolts) * read_number(self.milliamperes) * 1e-6


class JetsonMeter:
    """One rail, or the sum of rails side by side."""

    wrap_j = None

    def __init__(self, info: MeterInfo, rails: Sequence[Rail]) -> None:
        self.info = info
        self._rails = tuple(rails)

    def read(self) -> Reading:
        watts = sum(rail.watts() for rail in self._rails)
        if watts <= 0 and self.info.scope != "component":
            raise MeterError(f"{self.info.name} shows {watts:.3f} W, which a running computer cannot take; the chip may be switched off")
        return Reading(watts)

    def close(self) -> None:
        pass


def discover_jetson(root: Path = Path("/")) -> list[Meter | AbsentMeter]:
    """A meter of each rail, and one of the whole module or board where its rails are documented."""
    try:
        board = read_word(root / "proc/device-tree/model")
    except MeterError:
        return [AbsentMeter("jetson", "this is no Jetson: there is no /proc/device-tree/model")]
    if not re.search("jetson|nvidia", board, re.IGNORECASE):
        return [AbsentMeter("jetson", f"this is no Jetson, but {board}")]
    rails = {rail.label: rail for rail in (*_hwmon_rails(root), *_iio_rails(root))}
    if not rails:
        advice = "the driver ina3221 must be loaded; the 2 GB Nano has no such chip: measure at the wall with a plug"
        return [AbsentMeter("jetson", f"{board} shows no power rail under /sys/class/hwmon or /sys/bus/i2c/drivers/ina3221x", advice)]
    return _meters(board, rails)


def _meters(board: str, rails: Mapping[str, Rail]) -> list[Meter | AbsentMeter]:
    total = next((t for t in _TOTALS if rails.keys() >= set(t.rails)), None)
    parts: list[Meter | AbsentMeter] = [
        JetsonMeter(_part_info(board, rail, total, rails), [rail])
        for label, rail in sorted(rails.items())
        if total is None or total.rails != (label,)
    ]
    if total is None or ("Thor" in board and total.scope != "device"):
        reason = f"the rails of {board} ({', '.join(sorted(rails))}) do not add up to a whole that NVIDIA documents"
        return [AbsentMeter("jetson:total", reason, "measure at the wall with a plug, or import a meter's log"), *parts]
    return [JetsonMeter(_total_info(board, total, rails), [rails[label] for label in total.rails]), *parts]


def _total_info(board: str, total: _Total, rails: Mapping[str, Rail]) -> MeterInfo:
    return MeterInfo(
        name=_total_name(total),
        domain=f"{board}, {total.covers} ({' + '.join(total.rails)})",
        scope=total.scope,
        kind="measured",
        quantity="power",
        period_s=max(rails[label].period_s for label in total.rails),
        source=_SOURCE,
    )


def _part_info(board: str, rail: Rail, total: _Total | None, rails: Mapping[str, Rail]) -> MeterInfo:
    within = None
    if total is not None and (total.scope == "device" or not _ON_CARRIER.match(rail.label)):
        within = _total_name(total)
    if _WITHIN.get(rail.label) in rails:
        within = f"jetson:{_WITHIN[rail.label]}"
    return MeterInfo(
        name=f"jetson:{rail.label}",
        domain=f"{board}, rail {rail.label}",
        scope="component",
        kind="measured",
        quantity="power",
        period_s=rail.period_s,
        within=within,
        source=_SOURCE,
    )


def _total_name(total: _Total) -> str:
    return f"jetson:{total.rails[0]}" if len(total.rails) == 1 else "jetson:total"


def _hwmon_rails(root: Path) -> Iterator[Rail]:
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = read_optional(chip / "name")
        if name == "ina238":
            yield _hwmon_rail(chip, 1, read_optional(chip / "label") or "VIN")
        elif name == "ina3221":
            for n in (1, 2, 3):  # 4 and above are shunt voltages, and a sum of them that is no rail
                label = read_optional(chip / f"in{n}_label")
                if label and label != "NC" and read_optional(chip / f"in{n}_enable") != "0" and (chip / f"curr{n}_input").exists():
                    yield _hwmon_rail(chip, n, label)


def _hwmon_rail(chip: Path, n: int, label: str) -> Rail:
    power = chip / f"power{n}_input"
    interval_ms = read_optional(chip / "update_interval")
    period_s = float(interval_ms) / 1e3 if interval_ms and interval_ms.isdecimal() and int(interval_ms) else _PERIOD_S
    return Rail(label, chip / f"in{n}_input", chip / f"curr{n}_input", power if power.exists() else None, 1e-6, period_s)


def _iio_rails(root: Path) -> Iterator[Rail]:
    """JetPack 4 and before: rail_name_N beside in_voltageN_input (mV), in_currentN_input (mA) and in_powerN_input (mW)."""
    for file in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*/rail_name_*")):
        label, n = read_optional(file), file.name.removeprefix("rail_name_")
        if label and label != "NC":
            power = file.parent / f"in_power{n}_input"
            volts, amps = file.parent / f"in_voltage{n}_input", file.parent / f"in_current{n}_input"
            yield Rail(label, volts, amps, power if power.exists() else None, 1e-3, _PERIOD_S)
