from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from power_devices import Plug, free_port, http_plug

from edgelm.bench.power import plug as plug_module
from edgelm.bench.power.shelly import open_shelly
from edgelm.errors import MeterError

GEN1 = {
    "/shelly": {"type": "SHPLG-S", "mac": "AABBCC", "auth": False, "num_meters": 1},
    "/status": {"relays": [{"ison": True}], "meters": [{"power": 23.45, "is_valid": True, "timestamp": 1700000040, "total": 12345}]},
}
SWITCH = {
    "id": 0,
    "output": True,
    "apower": 25.7,
    "voltage": 239.7,
    "aenergy": {"total": 913.252, "by_minute": [404.6], "minute_ts": 1782936360},
}
GEN2 = {
    "/shelly": {"id": "shellyplusplugs-1", "model": "SNPL-00112EU", "gen": 2, "auth_en": False, "app": "PlusPlugS"},
    "/rpc/Shelly.GetStatus": {"switch:0": SWITCH, "sys": {}},
    "/rpc/Switch.GetStatus?id=0": SWITCH,
}


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plug_module, "TIMEOUT_S", 0.3)


@pytest.fixture
def gen1() -> Iterator[Plug]:
    with http_plug(GEN1) as plug:
        yield plug


@pytest.fixture
def gen2() -> Iterator[Plug]:
    with http_plug(GEN2) as plug:
        yield plug


def error_of(plug: Plug, options: str = "") -> str:
    with pytest.raises(MeterError) as caught:
        open_shelly(f"shelly://{plug.address}{options}")
    return str(caught.value)


def test_first_generation(gen1: Plug) -> None:
    meter = open_shelly(f"shelly://{gen1.address}")
    assert meter.read().value == 23.45
    assert (meter.info.name, meter.info.scope, meter.info.kind) == (f"shelly://{gen1.address}", "wall", "measured")
    assert "SHPLG-S" in meter.info.domain
    assert meter.wrap_j is None
    meter.close()
    meter.close()


def test_first_generation_with_clamps_counts_watt_hours(gen1: Plug) -> None:
    gen1.answers["/status"] = {"emeters": [{"power": 1.0, "is_valid": True, "total": 9}, {"power": 55.0, "is_valid": True, "total": 7.5}]}
    meter = open_shelly(f"shelly://{gen1.address}?channel=1")
    assert meter.read().value == 55.0
    meter.close()


def test_second_generation_sees_new_values(gen2: Plug) -> None:
    meter = open_shelly(f"shelly://{gen2.address}")
    assert meter.read().value == 25.7
    gen2.answers["/rpc/Switch.GetStatus?id=0"] = SWITCH | {"apower": 31.5}
    assert meter.read().value == 31.5
    meter.close()


@pytest.mark.parametrize(("generation", "joules", "stamp"), [(GEN1, 12345 * 60, 1700000040), (GEN2, 913.252 * 3600, 1782936360)])
def test_counters_carry_the_minute_they_stand_for(generation: dict[str, Any], joules: float, stamp: int) -> None:
    with http_plug(generation) as plug:
        meter = open_shelly(f"shelly://{plug.address}?read=energy")
        reading = meter.read()
        assert reading.value == pytest.approx(joules)
        assert reading.stamp == stamp
        assert (meter.info.quantity, meter.info.period_s) == ("energy", 60.0)
        meter.close()


def test_meters_without_a_relay(gen2: Plug) -> None:
    gen2.answers |= {"/rpc/Shelly.GetStatus": {"pm1:0": SWITCH}, "/rpc/PM1.GetStatus?id=0": {"id": 0, "apower": 12.5}}
    meter = open_shelly(f"shelly://{gen2.address}")
    assert meter.read().value == 12.5
    meter.close()


@pytest.mark.parametrize("key", ["auth", "auth_en"])
def test_passwords_are_explained(gen2: Plug, key: str) -> None:
    gen2.answers["/shelly"] = GEN2["/shelly"] | {key: True}
    assert "wants a password" in error_of(gen2)


def test_http_401_is_explained(gen2: Plug) -> None:
    gen2.answers["/rpc/Shelly.GetStatus"] = (401, b"")
    assert "wants a password" in error_of(gen2)


def test_a_relay_without_a_meter_shows_a_figure_from_its_settings(gen1: Plug) -> None:
    gen1.answers["/status"] = {"meters": [{"power": 60.0, "is_valid": True}]}
    assert "measures nothing" in error_of(gen1)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"apower": 0.0}, "not plugged in there"),
        ({"output": False, "apower": 0.0}, "switched off"),
        ({"errors": ["power_meter_failure"]}, "power_meter_failure"),
        ({"apower": None}, "shows no apower"),
        ({"apower": "25.7"}, "shows no apower"),
    ],
)
def test_readings_that_cannot_be_believed(gen2: Plug, status: dict[str, Any], said: str) -> None:
    gen2.answers["/rpc/Switch.GetStatus?id=0"] = SWITCH | status
    assert said in error_of(gen2)


def test_an_invalid_reading_of_the_first_generation(gen1: Plug) -> None:
    gen1.answers["/status"] = {"meters": [{"power": 23.45, "is_valid": False, "total": 1}]}
    assert "invalid" in error_of(gen1)


@pytest.mark.parametrize("generation", [GEN1, GEN2])
def test_a_channel_that_is_not_there(generation: dict[str, Any]) -> None:
    with http_plug(generation) as plug:
        assert "fewer channels" in error_of(plug, "?channel=3")


@pytest.mark.parametrize(
    ("body", "said"), [(b"<html>router</html>", "no JSON"), (b"[1]", "list"), (b"[" * 100_000, "no JSON"), (b"\xff", "no JSON")]
)
def test_garbage(gen2: Plug, body: bytes, said: str) -> None:
    gen2.answers["/shelly"] = body
    assert said in error_of(gen2)


def test_another_kind_of_device(gen2: Plug) -> None:
    gen2.answers.clear()
    assert "HTTP 404" in error_of(gen2)


def test_a_plug_that_says_nothing(gen2: Plug) -> None:
    gen2.stalls = True
    assert "did not answer within" in error_of(gen2)


def test_a_plug_that_never_ends(gen2: Plug) -> None:
    gen2.drips = True
    assert "does not come to an end" in error_of(gen2)


def test_a_plug_that_vanishes_in_the_middle(gen2: Plug) -> None:
    meter = open_shelly(f"shelly://{gen2.address}")
    gen2.hangs_up = True
    with pytest.raises(MeterError, match="cannot be asked"):
        meter.read()
    meter.close()


def test_nobody_there() -> None:
    with pytest.raises(MeterError, match="cannot be asked"):
        open_shelly(f"shelly://127.0.0.1:{free_port()}")


def test_an_unknown_quantity(gen2: Plug) -> None:
    assert "power" in error_of(gen2, "?read=amps")
