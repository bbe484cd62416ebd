from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from power_devices import Plug, http_plug

from edgelm.bench.power import plug as plug_module
from edgelm.bench.power.tasmota import open_tasmota
from edgelm.errors import MeterError

ENERGY = {"TotalStartTime": "2019-08-18T11:07:55", "Total": 0.003, "Power": 26, "Factor": 0.06, "Voltage": 239, "Current": 0.106}


def sensors(**energy: Any) -> dict[str, Any]:
    return {"StatusSNS": {"Time": "2019-09-06T20:06:19", "ENERGY": ENERGY | energy}}


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plug]:
    monkeypatch.setattr(plug_module, "TIMEOUT_S", 0.3)
    with http_plug({"/cm?cmnd=Status+8": sensors(), "/cm?cmnd=Status 8": sensors()}) as plug:
        yield plug


def answer(plug: Plug, number: int, body: Any) -> None:
    plug.answers |= {f"/cm?cmnd=Status+{number}": body, f"/cm?cmnd=Status {number}": body}


def error_of(plug: Plug, options: str = "") -> str:
    with pytest.raises(MeterError) as caught:
        open_tasmota(f"tasmota://{plug.address}{options}")
    return str(caught.value)


def test_watts(plug: Plug) -> None:
    meter = open_tasmota(f"tasmota://{plug.address}")
    assert meter.read().value == 26
    assert (meter.info.scope, meter.info.quantity, meter.info.period_s) == ("wall", "power", 1.0)
    answer(plug, 8, sensors(Power=31.25))
    assert meter.read().value == 31.25
    meter.close()


def test_several_channels(plug: Plug) -> None:
    answer(plug, 8, sensors(Power=[3, 41]))
    meter = open_tasmota(f"tasmota://{plug.address}?channel=1")
    assert meter.read().value == 41
    meter.close()
    assert "2 channels" in error_of(plug, "?channel=2")


def test_one_channel_has_no_second(plug: Plug) -> None:
    assert "one channel" in error_of(plug, "?channel=1")


def test_where_only_status_10_shows_energy(plug: Plug) -> None:
    answer(plug, 8, {"StatusSNS": {"Time": "2019-09-06T20:06:19"}})
    answer(plug, 10, sensors(Power=12))
    meter = open_tasmota(f"tasmota://{plug.address}")
    assert meter.read().value == 12
    meter.close()


@pytest.mark.parametrize("body", [{"WARNING": "Need user=<username>&password=<password>"}, (401, b"{}")])
def test_passwords_are_explained(plug: Plug, body: Any) -> None:
    answer(plug, 8, body)
    assert "wants a password" in error_of(plug)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"StatusSNS": {"SI7021": {}}}, "no ENERGY"),
        ({"Command": "Unknown"}, "no ENERGY"),
        (sensors(Power=0), "not plugged in there"),
        (sensors(Power="26"), "shows no Power"),
        (sensors(Power=["x"]), "shows no Power"),
        (b"nonsense", "no JSON"),
    ],
)
def test_what_cannot_be_believed(plug: Plug, body: Any, said: str) -> None:
    answer(plug, 8, body)
    answer(plug, 10, body)
    assert said in error_of(plug)


def test_a_plug_that_says_nothing(plug: Plug) -> None:
    plug.stalls = True
    assert "did not answer within" in error_of(plug)


def test_a_plug_that_hangs_up(plug: Plug) -> None:
    plug.hangs_up = True
    assert "cannot be asked" in error_of(plug)
