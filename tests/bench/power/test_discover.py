"""The table of meters."""

from __future__ import annotations

from pathlib import Path

import pytest
from power_machine import info, zone

from edgelm.bench.power import discover as table
from edgelm.bench.power.base import AbsentMeter, Meter
from edgelm.bench.power.discover import discover
from edgelm.bench.power.file_meter import FileMeter
from edgelm.errors import InvalidRequestError, MeterError


class Plug(FileMeter):
    """A meter that tells whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_an_empty_machine_names_every_kind_with_a_reason(tmp_path: Path) -> None:
    found = discover(root=tmp_path)
    assert all(isinstance(meter, AbsentMeter) and meter.reason for meter in found)
    assert len(found) >= len(table.LOCAL)


def test_the_machines_own_are_found(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    assert "rapl:package-0" in [meter.info.name for meter in discover(root=tmp_path) if not isinstance(meter, AbsentMeter)]


@pytest.mark.parametrize("address", ["192.168.1.20", "telegraph://host", "://", ""])
def test_addresses_of_no_known_kind(address: str) -> None:
    with pytest.raises(InvalidRequestError, match="give an address of a known kind: shelly://HOST"):
        discover([address])


def test_an_address_given_twice_is_one_meter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(table, "NETWORK", {"good": lambda address: Plug(info(name=address), tmp_path / "no")})
    found = discover(["good://a", "good://a", "good://b"], tmp_path)
    assert [meter.info.name for meter in found if not isinstance(meter, AbsentMeter)] == ["good://a", "good://b"]


def test_a_meter_that_does_not_answer_closes_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plug = Plug(info(), tmp_path / "no")

    def silent(address: str) -> Meter:
        raise MeterError(f"{address} does not answer")

    monkeypatch.setattr(table, "NETWORK", {"good": lambda _: plug, "bad": silent})
    with pytest.raises(MeterError, match="bad://b does not answer"):
        discover(["good://a", "bad://b"], tmp_path)
    assert plug.closed
