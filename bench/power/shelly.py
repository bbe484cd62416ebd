"""Shelly plugs and relays: `shelly://host[:port][?channel=N][&read=energy]`.

First generation: /status with `meters` (W; watt-minutes) or `emeters` (W; Wh). Second and later: RPC Switch.GetStatus or PM1.GetStatus with
`apower` (W) and `aenergy` (total in Wh; `minute_ts` tells the minute it stands for). Source: shelly-api-docs.shelly.cloud, gen1 and gen2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from edgelm.bench.power.base import Reading
from edgelm.bench.power.plug import Address, PlugClient, field_of, parse_address, used_watts
from edgelm.bench.record import MeterInfo
from edgelm.errors import MeterError

_PERIOD_S = {"power": 1.0, "energy": 60.0}


class ShellyMeter:
    """One socket of a plug."""

    wrap_j = None

    def __init__(self, address: Address, quantity: Literal["power", "energy"], client: PlugClient, ask: Callable[[], Reading], model: str):
        self._client = client
        self._ask = ask
        self.info = MeterInfo(
            name=address.text,
            domain=f"wall socket of Shelly {model}, channel {address.channel}",
            scope="wall",
            kind="measured",
            quantity=quantity,
            period_s=_PERIOD_S[quantity],
            source="Shelly states no accuracy with its API",
        )

    def read(self) -> Reading:
        return self._ask()

    def close(self) -> None:
        self._client.close()


def open_shelly(text: str) -> ShellyMeter:
    """Open the plug at an address, and read it once.

    Raises:
        MeterError: it does not answer, is another device, wants a password, or does not measure.
    """
    address = parse_address(text, "shelly", 80, ("channel", "read"))
    quantity = address.options.get("read", "power")
    if quantity not in ("power", "energy"):
        raise MeterError(f"{text}: read is {quantity!r}; give power (about once a second) or energy (once a minute)")
    client = PlugClient(address)
    try:
        device = client.get("/shelly")
        if device.get("auth") or device.get("auth_en"):
            raise MeterError(f"{text} wants a password, which edgebench does not give; switch it off in the plug's settings")
        ask = _second_generation(client, address, quantity) if "gen" in device else _first_generation(client, address, quantity)
        ask()
    except MeterError:
        client.close()
        raise
    model = str(device.get("app") or device.get("type") or "of unknown model")
    return ShellyMeter(address, "energy" if quantity == "energy" else "power", client, ask, model)


def _first_generation(client: PlugClient, address: Address, quantity: str) -> Callable[[], Reading]:
    def ask() -> Reading:
        meter, joules = _first_generation_meter(client.get("/status"), address)
        if meter.get("is_valid") is False:
            raise MeterError(f"{address.text} marks its own reading as invalid; restart the plug")
        if quantity == "power":
            return Reading(used_watts(field_of(meter, "power", address.text), address.text))
        return Reading(field_of(meter, "total", address.text) * joules, field_of(meter, "timestamp", address.text))

    return ask


def _first_generation_meter(status: dict[str, Any], address: Address) -> tuple[dict[str, Any], float]:
    """The channel's entry, and the joules of the unit of its total."""
    for name, joules in (("emeters", 3600.0), ("meters", 60.0)):
        entries = status.get(name)
        if isinstance(entries, list) and address.channel < len(entries) and isinstance(entries[address.channel], dict):
            if "total" not in entries[address.channel]:  # relays without a meter repeat a figure from their settings
                break
            return entries[address.channel], joules
    raise MeterError(f"{address.text} measures nothing on channel {address.channel}; it is a relay without a meter, or has fewer channels")


def _second_generation(client: PlugClient, address: Address, quantity: str) -> Callable[[], Reading]:
    everything = client.get("/rpc/Shelly.GetStatus")
    for key, component in (("switch", "Switch"), ("pm1", "PM1")):
        status = everything.get(f"{key}:{address.channel}")
        if isinstance(status, dict) and "apower" in status:
            return lambda: _second_generation_reading(client.get(f"/rpc/{component}.GetStatus", {"id": address.channel}), address, quantity)
    raise MeterError(f"{address.text} measures nothing on channel {address.channel}; it is a relay without a meter, or has fewer channels")


def _second_generation_reading(status: dict[str, Any], address: Address, quantity: str) -> Reading:
    if status.get("errors"):
        raise MeterError(f"{address.text} reports {', '.join(map(str, status['errors']))}; its reading cannot be trusted")
    if status.get("output") is False:
        raise MeterError(f"{address.text} is switched off, so that this computer is not fed by it")
    if quantity == "power":
        return Reading(used_watts(field_of(status, "apower", address.text), address.text))
    counter = status.get("aenergy")
    if not isinstance(counter, dict):
        raise MeterError(f"{address.text} counts no energy; leave read=energy away")
    return Reading(field_of(counter, "total", address.text) * 3600, field_of(counter, "minute_ts", address.text))
