"""RAPL: the energy counters that Intel's and AMD's processors keep of themselves, as Linux shows them under /sys/class/powercap.

    intel-rapl:0          package-0            one socket: cores, caches, memory controller, graphics
    intel-rapl:0:0        core                 in it: the cores
    intel-rapl:0:1        uncore               in it: the graphics processor
    intel-rapl:0:2        dram                 beside it, although listed under it: the memory of that socket
    intel-rapl:1          psys                 the platform, as far as the maker of the machine wired it up
    intel-rapl-mmio:0     package-0            the first one's counter again, by another way

energy_uj begins anew after max_energy_range_uj (https://docs.kernel.org/power/powercap/powercap.html). It may be read by root only since
CVE-2020-8694, because energy tells others what is computed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgelm.bench.power.base import AbsentMeter, Meter
from edgelm.bench.power.file_meter import FileMeter
from edgelm.bench.power.summed import SummedMeter
from edgelm.bench.power.sysfs import UnreadableError, read_number, read_optional
from edgelm.bench.record import Kind, MeterInfo
from edgelm.errors import MeterError

_ZONE = re.compile(r"(intel-rapl(?:-mmio|-tpmi)?):(\d+)(?::(\d+))?")
_CONTROLS = ("intel-rapl", "intel-rapl-tpmi", "intel-rapl-mmio")
_PERIOD_S = 0.001
_SAME_COUNTER_J = 1.0
_WHOLE = "rapl:packages"
_CHMOD = (
    "run: sudo chmod a+r /sys/class/powercap/intel-rapl*:*/*energy*_uj (until the next boot; every user can then watch the"
    " machine's energy, which CVE-2020-8694 is about), or run edgebench as root"
)
_UNMASK = "containers hide it: start the container with --security-opt systempaths=unconfined, or measure outside of it"

_HASWELL_EP = (6, 63)
_MODELLED_INTEL = {(6, 42), (6, 45), (6, 58), (6, 62)}  # Sandy Bridge, Ivy Bridge
_HACKENBERG = "Hackenberg et al. 2015 (doi:10.1109/IPDPSW.2015.70)"
_PLATFORM = MeterInfo(
    "rapl:psys",
    "platform, as its maker wired it",
    "device",
    "vendor model",
    "energy",
    _PERIOD_S,
    source="what psys covers, and how well, is up to the maker of the machine",
)


@dataclass(frozen=True)
class _Zone:
    """A power zone: its control type, its place there (package, and domain within or None), its name, its folder."""

    control: str
    package: int
    domain: int | None
    name: str
    folder: Path


def discover_rapl(root: Path) -> list[Meter | AbsentMeter]:
    """Every RAPL domain, each once, and the sum of the packages where there are several."""
    base = root / "sys/class/powercap"
    zones = _zones(base)
    if not zones:
        return [_no_zones(root, base)]
    kind, source = _kind(root)
    packages = _without_mirrors([zone for zone in zones if zone.domain is None and zone.name.startswith("package")])
    try:
        opened = [_open(zone, _info(f"rapl:{zone.name}", _words(zone), "package", kind, source)) for zone in packages]
    except UnreadableError as error:
        return [AbsentMeter("rapl", str(error), _CHMOD)]
    except MeterError as error:
        return [AbsentMeter("rapl", str(error))]  # all or none: one socket of two must not stand for both
    found = _platform(zones)
    platform = next((meter.info.name for meter in found if not isinstance(meter, AbsentMeter)), None)
    found += _with_sum(opened, platform)
    for package in packages:
        found += _domains(package, zones, platform, kind, source)
    return found


def _zones(base: Path) -> list[_Zone]:
    """All zones, those of the first control type that has a name before the same ones of others."""
    try:
        folders = sorted(base.iterdir())
    except OSError:
        return []
    zones = []
    for folder in folders:
        match = _ZONE.fullmatch(folder.name)
        name = read_optional(folder / "name") if match else None
        if match and name:
            zones.append(_Zone(match[1], int(match[2]), None if match[3] is None else int(match[3]), name, folder))
    return sorted(zones, key=lambda zone: (_CONTROLS.index(zone.control), zone.package, -1 if zone.domain is None else zone.domain))


def _no_zones(root: Path, base: Path) -> AbsentMeter:
    cpu = read_optional(root / "proc/cpuinfo") or ""
    if not base.is_dir():
        if re.search(r"^flags\s*:.*\bhypervisor\b", cpu, re.MULTILINE):
            return AbsentMeter("rapl", f"no {base}, as in most virtual machines", "measure on the machine itself")
        is_x86 = re.search(r"^vendor_id\s*:\s*(GenuineIntel|AuthenticAMD)", cpu, re.MULTILINE)
        return AbsentMeter("rapl", f"no {base}", "run: sudo modprobe intel_rapl_msr" if is_x86 else "")
    is_masked = any(_ZONE.fullmatch(entry.name) or entry.name in _CONTROLS for entry in base.iterdir())
    return AbsentMeter("rapl", f"{base} has no zone that can be read", _UNMASK if is_masked else "")


def _kind(root: Path) -> tuple[Kind, str]:
    """Whether the packages' counters are measured, and who says so."""
    cpu = read_optional(root / "proc/cpuinfo") or ""
    fields = dict(re.findall(r"^(vendor_id|cpu family|model)\s*:\s*(.*)$", cpu, re.MULTILINE))
    numbers = tuple(int(fields.get(name, "-1")) for name in ("cpu family", "model"))
    if fields.get("vendor_id") == "AuthenticAMD":
        return "vendor model", "Schöne et al. 2021 (arXiv:2108.00808): AMD's figures are modelled; no uncertainty is stated"
    if numbers == _HASWELL_EP:
        return (
            "measured",
            "Hackenberg et al. 2015 (doi:10.1109/IPDPSW.2015.70): measured at the voltage regulators; no uncertainty is stated",
        )
    if numbers in _MODELLED_INTEL:
        return "vendor model", f"{_HACKENBERG}: modelled before Haswell-EP; no uncertainty is stated"
    return "vendor model", (
        "Khan et al. 2018 (doi:10.1145/3177754): follows the power at the plug closely on Haswell and Skylake;"
        " whether this processor measures, and how well, is not published"
    )


def _open(zone: _Zone, info: MeterInfo) -> FileMeter:
    """Open and read once."""
    wrap_j = read_number(zone.folder / "max_energy_range_uj") * 1e-6
    if not wrap_j > 0:
        raise MeterError(f"{zone.folder / 'max_energy_range_uj'} is {wrap_j} J, so a wrap of the counter could not be told")
    meter = FileMeter(info, zone.folder / "energy_uj", wrap_j)
    meter.read()
    return meter


def _words(zone: _Zone) -> str:
    return f"CPU {zone.name.replace('-', ' ')}"


def _info(name: str, domain: str, scope: Literal["component", "package"], kind: Kind, source: str) -> MeterInfo:
    return MeterInfo(name, domain, scope, kind, "energy", _PERIOD_S, source=source)


def _platform(zones: Sequence[_Zone]) -> list[Meter | AbsentMeter]:
    found = [zone for zone in zones if zone.domain is None and zone.name == "psys"]
    platforms = [zone for zone in found if zone.control == found[0].control]
    if len(platforms) > 1:
        return [AbsentMeter(_PLATFORM.name, "there are several, and nothing tells which one is the whole machine")]
    try:
        return [_open(zone, _PLATFORM) for zone in platforms]
    except MeterError as error:
        return [AbsentMeter(_PLATFORM.name, str(error))]


def _with_sum(packages: Sequence[FileMeter], platform: str | None) -> list[Meter]:
    """The packages; before them their sum, if they are several. Each names what it is within."""
    inner = _WHOLE if len(packages) > 1 else platform
    for meter in packages:
        meter.info = replace(meter.info, within=inner)
    if len(packages) < 2:
        return list(packages)
    whole = SummedMeter(_WHOLE, f"CPU, all {len(packages)} packages", packages)
    whole.info = replace(whole.info, within=platform)
    return [whole, *packages]


def _without_mirrors(zones: Sequence[_Zone]) -> list[_Zone]:
    """One zone for every counter: not again by another control type, nor again for each die of a socket.

    AMD's processors of several dies show the socket's counter once for each die; Intel's dies count for themselves.
    """
    by_name: dict[str, _Zone] = {}
    for zone in zones:
        by_name.setdefault(zone.name, zone)
    sockets = defaultdict(list)
    for zone in by_name.values():
        sockets[zone.name.partition("-die-")[0]].append(zone)
    return [zone for dies in sockets.values() for n, zone in enumerate(dies) if not any(_is_mirror(zone, dies[k]) for k in range(n))]


def _is_mirror(one: _Zone, other: _Zone) -> bool:
    try:
        first, second = (read_number(zone.folder / "energy_uj") * 1e-6 for zone in (one, other))
    except MeterError:
        return False
    return abs(first - second) < _SAME_COUNTER_J


def _domains(package: _Zone, zones: Sequence[_Zone], platform: str | None, kind: Kind, source: str) -> list[Meter | AbsentMeter]:
    """What Linux lists under a package: parts of it, and its memory, which is none."""
    found: list[Meter | AbsentMeter] = []
    for zone in zones:
        if zone.domain is None or (zone.control, zone.package) != (package.control, package.package):
            continue
        name = f"rapl:{package.name}/{zone.name}"
        within = platform if zone.name == "dram" else f"rapl:{package.name}"
        try:
            info = _info(name, f"{zone.name} of {_words(package)}", "component", kind, source)
            found.append(_open(zone, replace(info, within=within)))
        except MeterError as error:
            found.append(AbsentMeter(name, str(error)))
    return found
