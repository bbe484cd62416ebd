from __future__ import annotations

import pytest

from edgelm.bench.power.plug import field_of, parse_address, used_watts
from edgelm.errors import MeterError


def test_an_address_with_everything() -> None:
    address = parse_address("shelly://10.0.0.7:8080?channel=2", "shelly", 80)
    assert (address.host, address.port, address.channel) == ("10.0.0.7", 8080, 2)


def test_an_address_with_what_it_needs() -> None:
    address = parse_address("kasa://[fe80::1]", "kasa", 9999)
    assert (address.host, address.port, address.channel) == ("fe80::1", 9999, 0)


@pytest.mark.parametrize(
    "text",
    [
        "shelly://",
        "shelly://host:99999",
        "shelly://host:port",
        "shelly://host/status",
        "tasmota://host",
        "shelly://host?chanel=1",
        "shelly://host?channel",
        "shelly://[::1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(MeterError, match="shelly://"):
        parse_address(text, "shelly", 80)


def test_passwords_are_refused() -> None:
    with pytest.raises(MeterError, match="password"):
        parse_address("shelly://admin:secret@host", "shelly", 80)


def test_channels_are_whole_numbers() -> None:
    with pytest.raises(MeterError, match="whole number"):
        _ = parse_address("shelly://host?channel=-1", "shelly", 80).channel


@pytest.mark.parametrize("value", [None, "12", True, float("nan"), float("inf"), [1]])
def test_a_field_is_a_finite_number(value: object) -> None:
    with pytest.raises(MeterError, match="shows no power"):
        field_of({"power": value}, "power", "plug")


@pytest.mark.parametrize("watts", [0.0, -3.0])
def test_a_socket_in_use_shows_watts(watts: float) -> None:
    with pytest.raises(MeterError, match="not plugged in there"):
        used_watts(watts, "plug")
