"""Plugs with the Tasmota firmware: `tasmota://host[:port][?channel=N]`.

The command Status 8 (or 10) answers with ENERGY.Power in watts, a list where a device has several channels. Its counter, Total in kWh,
moves in steps of 3.6 kJ unless EnergyRes was raised, and is not used. Source: tasmota.github.io/docs (JSON-Status-Responses, Commands).
"""

from __future__ import annotations

from typing import Any

from edgelm.bench.power.base import Reading
from edgelm.bench.power.plug import Address, PlugClient, field_of, parse_address, used_watts
from edgelm.bench.record import MeterInfo
from edgelm.errors import MeterError

_PERIOD_S = 1.0
_SOURCE = "depends on the plug and its calibration; rounded to whole watts unless the command `WattRes 2` was given to it"


class TasmotaMeter:
    """One channel of a plug."""

    wrap_j = None

    def __init__(self, address: Address) -> None:
        self._address = address
        self._client = PlugClient(address)
        domain = f"wall socket of a Tasmota plug, channel {address.channel}"
        self.info = MeterInfo(address.text, domain, "wall", "measured", "power", _PERIOD_S, source=_SOURCE)

    def read(self) -> Reading:
        where = self._address.text
        energy = self._energy()
        power = energy.get("Power")
        if isinstance(power, list):
            if self._address.channel >= len(power):
                raise MeterError(f"{where} has {len(power)} channels, counted from 0")
            return Reading(used_watts(field_of({"Power": power[self._address.channel]}, "Power", where), where))
        if self._address.channel:
            raise MeterError(f"{where} has one channel; leave channel={self._address.channel} away")
        return Reading(used_watts(field_of(energy, "Power", where), where))

    def close(self) -> None:
        self._client.close()

    def _energy(self) -> dict[str, Any]:
        where = self._address.text
        for command, section in (("Status 8", "StatusSNS"), ("Status 10", "StatusSNS")):
            answer = self._client.get("/cm", {"cmnd": command})
            if "WARNING" in answer:
                raise MeterError(f"{where} wants a password, which edgebench does not give; clear it with the command WebPassword 0")
            energy = answer[section].get("ENERGY") if isinstance(answer.get(section), dict) else None
            if isinstance(energy, dict):
                return energy
        raise MeterError(f"{where} shows no ENERGY; a plug without a power meter, or Tasmota before 5.12")


def open_tasmota(text: str) -> TasmotaMeter:
    """Open the plug at an address, and read it once.

    Raises:
        MeterError: it does not answer, is another device, wants a password, or does not measure.
    """
    meter = TasmotaMeter(parse_address(text, "tasmota", 80))
    try:
        meter.read()
    except MeterError:
        meter.close()
        raise
    return meter
