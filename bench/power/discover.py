"""Every kind of meter that edgebench knows: one row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgelm.bench.power.android import discover_android, open_adb
from edgelm.bench.power.apple import discover_apple
from edgelm.bench.power.base import AbsentMeter, Meter
from edgelm.bench.power.battery import discover_battery
from edgelm.bench.power.hwmon import discover_hwmon
from edgelm.bench.power.jetson import discover_jetson
from edgelm.bench.power.kasa import open_kasa
from edgelm.bench.power.nvml import discover_nvml
from edgelm.bench.power.rapl import discover_rapl
from edgelm.bench.power.shelly import open_shelly
from edgelm.bench.power.tasmota import open_tasmota
from edgelm.errors import InvalidRequestError

LOCAL: tuple[Callable[[Path], list[Meter | AbsentMeter]], ...] = (
    discover_rapl,
    discover_hwmon,
    discover_jetson,
    discover_battery,
    discover_nvml,
    discover_apple,
    discover_android,
)
"""Kinds of meters in the machine: each looks under the given root and tells what it found, or what is missing."""

NETWORK: dict[str, Callable[[str], Meter]] = {
    "shelly": open_shelly,
    "tasmota": open_tasmota,
    "kasa": open_kasa,
    "adb": open_adb,
}
"""Kinds of meters with an address, by the word before its "://": each opens one, or raises MeterError."""


def discover(addresses: Sequence[str] = (), root: Path = Path("/")) -> list[Meter | AbsentMeter]:
    """All meters: those with an address, then the machine's own.

    Raises:
        MeterError: a meter with an address does not answer.
        InvalidRequestError: an address of no known kind.
    """
    for address in addresses:
        check_address(address)
    found: list[Meter | AbsentMeter] = []
    try:
        for address in dict.fromkeys(addresses):
            found.append(open_meter(address))
        for look in LOCAL:
            found.extend(look(root))
    except BaseException:
        close_all(found)
        raise
    return found


def open_meter(address: str) -> Meter:
    """The network meter of an address such as shelly://192.168.1.20.

    Raises:
        MeterError: it does not answer.
        InvalidRequestError: an address of no known kind.
    """
    return NETWORK[check_address(address)](address)


def close_all(found: Sequence[Meter | AbsentMeter]) -> None:
    """Close the meters that are there."""
    for meter in found:
        if not isinstance(meter, AbsentMeter):
            meter.close()


def check_address(address: str) -> str:
    """The kind of meter that the address is of.

    Raises:
        InvalidRequestError: it is of no known kind.
    """
    kind, separator, _ = address.partition("://")
    if not separator or kind not in NETWORK:
        known = ", ".join(f"{name}://HOST" for name in NETWORK)
        raise InvalidRequestError(f"--meter is {address!r}; give an address of a known kind: {known or 'there is none yet'}")
    return kind
