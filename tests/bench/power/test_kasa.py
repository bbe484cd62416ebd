from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from power_devices import free_port, kasa_plug

from edgelm.bench.power import kasa
from edgelm.bench.power.kasa import decrypt, encrypt, open_kasa
from edgelm.errors import MeterError

HS110 = {"power": 23.5, "voltage": 230.1, "current": 0.11, "total": 1.5, "err_code": 0}
KP115 = {"power_mw": 23_500, "voltage_mv": 230_100, "current_ma": 110, "total_wh": 1500, "err_code": 0}


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kasa, "TIMEOUT_S", 0.3)


def device(now: dict[str, Any], children: tuple[str, ...] = ()) -> Callable[[dict[str, Any]], Any]:
    def answer(request: dict[str, Any]) -> Any:
        if "system" in request:
            strip = {"children": [{"id": child, "state": 1} for child in children]} if children else {}
            return {"system": {"get_sysinfo": {"model": "KP115(EU)", "deviceId": "8006", "err_code": 0, **strip}}}
        if children and request.get("context") != {"child_ids": ["800601"]}:
            return {"emeter": {"get_realtime": {"power_mw": 99_000, "err_code": 0}}}
        return {"emeter": {"get_realtime": now}}

    return answer


def error_of(answer: Callable[[dict[str, Any]], Any], options: str = "") -> str:
    with kasa_plug(answer) as address, pytest.raises(MeterError) as caught:
        open_kasa(f"kasa://{address}{options}")
    return str(caught.value)


def test_the_protocol_hides_bytes_as_published() -> None:
    # the first bytes of {"system":{"get_sysinfo":... on the wire, as in softScheck's article
    assert encrypt(b'{"system":{').hex() == "d0f281f88bff9af7d5ef94"
    assert decrypt(encrypt(bytes(range(256)))) == bytes(range(256))


@pytest.mark.parametrize("now", [HS110, KP115])
def test_watts_in_both_spellings(now: dict[str, Any]) -> None:
    with kasa_plug(device(now)) as address:
        meter = open_kasa(f"kasa://{address}")
        assert meter.read().value == pytest.approx(23.5)
        assert (meter.info.scope, meter.info.quantity) == ("wall", "power")
        assert "KP115" in meter.info.domain
        meter.close()


@pytest.mark.parametrize("children", [("800600", "800601"), ("00", "01")])
def test_the_right_socket_of_a_strip(children: tuple[str, ...]) -> None:
    with kasa_plug(device(KP115, children)) as address:
        assert open_kasa(f"kasa://{address}?channel=1").read().value == pytest.approx(23.5)
    assert "2 channels" in error_of(device(KP115, children), "?channel=2")


def test_newer_firmware_refuses_and_the_error_says_what_to_use() -> None:
    with pytest.raises(MeterError, match=r"KLAP.*python-kasa.*edgebench power import"):
        open_kasa(f"kasa://127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"err_code": -1, "err_msg": "module not support"}, "module not support"),
        ({"err_code": -1}, "error -1"),
        ({"err_code": 0}, "shows no power"),
        ({"power": 0.0, "err_code": 0}, "not plugged in there"),
        ({"power_mw": "x", "err_code": 0}, "shows no power_mw"),
    ],
)
def test_what_cannot_be_believed(now: dict[str, Any], said: str) -> None:
    assert said in error_of(device(now))


def test_a_device_without_a_meter_refuses_the_whole_section() -> None:
    answers = {"emeter": {"err_code": -1, "err_msg": "module not support"}}
    assert "module not support" in error_of(lambda request: device({})(request) if "system" in request else answers)


def test_a_plug_with_one_socket_has_no_second() -> None:
    assert "one channel" in error_of(device(KP115), "?channel=1")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "announces"),
        (struct.pack(">I", 8) + b"notjson!", "not answer as a Kasa plug"),
        (struct.pack(">I", 2) + encrypt(b"[]"), "not answer as a Kasa plug"),
        (struct.pack(">I", 100) + b"short", "hung up"),
        (b"", "hung up"),
    ],
)
def test_garbage(reply: bytes, said: str) -> None:
    assert said in error_of(lambda _: reply)


def test_a_plug_that_says_nothing() -> None:
    assert "did not answer within" in error_of(lambda _: None)


def test_a_plug_that_stops_answering_later() -> None:
    n_asked = []

    def answer(request: dict[str, Any]) -> Any:
        n_asked.append(1)
        return device(HS110)(request) if len(n_asked) < 3 else None

    with kasa_plug(answer) as address:
        meter = open_kasa(f"kasa://{address}")
        with pytest.raises(MeterError, match="did not answer within"):
            meter.read()
