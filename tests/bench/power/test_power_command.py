"""`edgebench power` as a person types it, on a made-up machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from power_machine import put, zone
from typer.testing import CliRunner

from edgelm.bench.commands.power import app
from edgelm.bench.power import discover as table
from edgelm.bench.power.rapl import discover_rapl
from edgelm.errors import MeterError


@pytest.fixture
def empty_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(table, "LOCAL", (lambda _: discover_rapl(tmp_path),))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A package that takes some 20 W."""
    monkeypatch.setattr(table, "LOCAL", (lambda _: discover_rapl(tmp_path),))
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    done = threading.Event()

    def work() -> None:
        joules = 1.0
        while not done.wait(0.01):
            joules += 0.2
            put(counter, joules * 1e6)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    done.set()
    thread.join()


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.mark.usefixtures("machine")
def test_list(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    shown = run("list", "--json", str(out))
    assert "rapl:package-0 │ CPU package 0 │ vendor model │ 1 ms │ not stated" in shown
    (meter,) = json.loads(out.read_text())["meters"]
    assert 5 < meter["watts"] < 25  # a busy machine writes more slowly


@pytest.mark.usefixtures("machine")
def test_idle(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert "rapl:package-0 (headline)" in run("idle", "--seconds", "0.6", "--json", str(out))
    power = json.loads(out.read_text())
    assert 5 < power["idle_w"][0] < 25
    assert power["idle"][0]["end_s"] - power["idle"][0]["start_s"] >= 0.6


@pytest.mark.usefixtures("machine")
def test_watch() -> None:
    shown = run("watch", "--seconds", "0.6")
    assert "rapl:package-0 (headline)" in shown
    assert " W │" in shown


@pytest.mark.usefixtures("empty_machine")
def test_without_a_meter_all_say_so(tmp_path: Path) -> None:
    assert "No power meter was found. Not here" in run("list")
    out = tmp_path / "out.json"
    for command in ("idle", "watch"):  # without a meter there is no rest either
        assert "power: not measured (no power meter was found; " in run(command, "--json", str(out))
        assert json.loads(out.read_text())["headline"] is None


@pytest.mark.usefixtures("machine")
def test_a_plug_that_does_not_answer_hides_no_other_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(address: str) -> None:
        raise MeterError(f"{address.partition('://')[2]} does not answer")

    monkeypatch.setattr(table, "NETWORK", {"shelly": silent})
    shown = run("list", "--meter", "shelly://192.0.2.1")
    assert "rapl:package-0" in shown
    assert "shelly://192.0.2.1 │ 192.0.2.1 does not answer" in shown
