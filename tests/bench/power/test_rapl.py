"""RAPL on made-up powercap trees."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from power_machine import AMD, INTEL, RANGE_UJ, Clock, Curve, as_ordinary_user, cpuinfo, zone

from edgelm.bench.power.base import AbsentMeter, Meter
from edgelm.bench.power.energy import energy_of
from edgelm.bench.power.headline import judge_traces
from edgelm.bench.power.rapl import discover_rapl
from edgelm.bench.power.sampler import TraceLog, read_into
from edgelm.bench.power.session import PowerSession
from edgelm.bench.record import Power, Window
from edgelm.errors import MeterError


def meters(found: Sequence[Meter | AbsentMeter]) -> dict[str, Meter]:
    return {meter.info.name: meter for meter in found if not isinstance(meter, AbsentMeter)}


def absent(found: Sequence[Meter | AbsentMeter]) -> list[AbsentMeter]:
    return [meter for meter in found if isinstance(meter, AbsentMeter)]


def laptop(root: Path) -> dict[str, Path]:
    """Files of the counters of an Intel laptop, shown twice, as newer ones do."""
    cpuinfo(root, INTEL.format(model=142))
    return {
        "package": zone(root, "intel-rapl:0", "package-0", 50_000_000),
        "core": zone(root, "intel-rapl:0:0", "core", 20_000_000),
        "uncore": zone(root, "intel-rapl:0:1", "uncore", 1_000_000),
        "dram": zone(root, "intel-rapl:0:2", "dram", 7_000_000),
        "psys": zone(root, "intel-rapl:1", "psys", 90_000_000),
        "mmio": zone(root, "intel-rapl-mmio:0", "package-0", 49_000_000),
    }


def test_every_domain_once_with_what_includes_it(tmp_path: Path) -> None:
    laptop(tmp_path)
    found = meters(discover_rapl(tmp_path))
    assert {name: (meter.info.scope, meter.info.within) for name, meter in found.items()} == {
        "rapl:psys": ("device", None),
        "rapl:package-0": ("package", "rapl:psys"),
        "rapl:package-0/core": ("component", "rapl:package-0"),
        "rapl:package-0/uncore": ("component", "rapl:package-0"),
        "rapl:package-0/dram": ("component", "rapl:psys"),
    }
    package = found["rapl:package-0"]
    assert package.read().value == pytest.approx(50)
    assert package.wrap_j == pytest.approx(RANGE_UJ * 1e-6)
    assert (package.info.quantity, package.info.uncertainty) == ("energy", None)


@pytest.mark.parametrize(
    ("cpu", "kind", "source"),
    [
        (INTEL.format(model=63), "measured", "Hackenberg"),
        (INTEL.format(model=42), "vendor model", "Hackenberg"),
        (INTEL.format(model=158), "vendor model", "Khan"),
        (AMD, "vendor model", "Schöne"),
        ("", "vendor model", "Khan"),
    ],
)
def test_measured_or_modelled(tmp_path: Path, cpu: str, kind: str, source: str) -> None:
    cpuinfo(tmp_path, cpu)
    zone(tmp_path, "intel-rapl:0", "package-0")
    info = meters(discover_rapl(tmp_path))["rapl:package-0"].info
    assert info.kind == kind
    assert source in info.source


def drive(found: Sequence[Meter | AbsentMeter], files: dict[Path, float], seconds: float = 10.0) -> Power:
    """Read all meters while each counter grows by its share of a known curve, from where it stands."""
    clock, curve = Clock(), Curve()
    logs = [(TraceLog(meter, clock()), meter) for meter in meters(found).values()]
    starts = {file: int(file.read_text()) for file in files}
    for n in range(int(seconds / 0.05) + 1):
        t = n * 0.05
        for file, share in files.items():
            file.write_text(f"{(starts[file] + share * curve.joules(t) * 1e6) % RANGE_UJ:.0f}\n")
        clock.time = 1000.0 + t
        for log, meter in logs:
            read_into(log, meter, clock)
    traces = judge_traces([log.trace() for log, _ in logs])
    return Power(traces=traces)


def headline_j(power: Power, name: str) -> float:
    energy, reason = energy_of(Power(name, traces=power.traces), [Window(2, 9)])
    assert energy is not None, reason
    return energy.gross_j


TRUE_J = Curve().joules(9) - Curve().joules(2)


def test_nested_domains_are_never_summed(tmp_path: Path) -> None:
    cpuinfo(tmp_path, INTEL.format(model=63))
    package = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 20_000_000)  # wraps on the way
    core = zone(tmp_path, "intel-rapl:0:0", "core")
    power = drive(discover_rapl(tmp_path), {package: 1.0, core: 0.6})
    assert headline_j(power, "rapl:package-0") == pytest.approx(TRUE_J, rel=0.01)
    assert headline_j(power, "rapl:package-0/core") == pytest.approx(0.6 * TRUE_J, rel=0.01)
    assert {trace.meter.name for trace in power.traces} == {"rapl:package-0", "rapl:package-0/core"}


def test_two_packages_are_one_sum(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 20_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 3_000_000)
    found = discover_rapl(tmp_path)
    assert {name: meter.info.within for name, meter in meters(found).items()} == {
        "rapl:packages": None,
        "rapl:package-0": "rapl:packages",
        "rapl:package-1": "rapl:packages",
    }
    power = drive(found, {first: 1.0, second: 0.5})
    assert headline_j(power, "rapl:packages") == pytest.approx(1.5 * TRUE_J, rel=0.01)


def test_a_socket_that_is_reset_ends_the_sum(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", "package-0"), zone(tmp_path, "intel-rapl:1", "package-1", 900_000_000)
    whole = meters(discover_rapl(tmp_path))["rapl:packages"]
    whole.read()
    second.write_text("5\n")
    first.write_text("1000001\n")
    with pytest.raises(MeterError, match="reset"):
        whole.read()


def test_dies_that_show_the_sockets_counter_are_one(tmp_path: Path) -> None:
    cpuinfo(tmp_path, AMD)
    zone(tmp_path, "intel-rapl:0", "package-0-die-0", 812_000_000)
    zone(tmp_path, "intel-rapl:1", "package-0-die-1", 812_000_400)
    assert list(meters(discover_rapl(tmp_path))) == ["rapl:package-0-die-0"]


def test_dies_that_count_for_themselves_are_summed(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0-die-0", 812_000_000)
    zone(tmp_path, "intel-rapl:1", "package-0-die-1", 512_000_000)
    assert list(meters(discover_rapl(tmp_path))) == ["rapl:packages", "rapl:package-0-die-0", "rapl:package-0-die-1"]


def test_counters_for_root_only_say_what_to_run() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        root = Path(name)
        root.chmod(0o755)
        for folder, zone_name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core")):
            zone(root, folder, zone_name).chmod(0o400 if folder else 0)
        for counter in root.glob("sys/class/powercap/*/energy_uj"):
            counter.chmod(0o000)
        with as_ordinary_user():
            found = discover_rapl(root)
            reason = PowerSession(0.0, meters=found).power().reason
    assert len(found) == 1
    only = absent(found)[0]
    assert "energy_uj may not be read by this user" in only.reason
    assert "sudo chmod a+r /sys/class/powercap/intel-rapl*:*/*energy*_uj" in only.advice
    assert only.advice in reason


def test_one_of_two_sockets_that_fails_leaves_none(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    broken = zone(tmp_path, "intel-rapl:1", "package-1")
    broken.unlink()
    broken.mkdir()  # a driver's error, for any user
    found = discover_rapl(tmp_path)
    assert meters(found) == {}
    assert "cannot be read (Is a directory)" in absent(found)[0].reason


def test_a_domain_that_fails_is_told_and_leaves_the_rest(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:0:0", "core").write_text("what\n")
    found = discover_rapl(tmp_path)
    assert list(meters(found)) == ["rapl:package-0"]
    assert "'what', which is no number" in absent(found)[0].reason


def test_a_range_of_zero_is_refused(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", range_uj=0)
    assert "a wrap of the counter could not be told" in absent(discover_rapl(tmp_path))[0].reason


def test_several_platforms_are_none(tmp_path: Path) -> None:
    for n in range(2):
        zone(tmp_path, f"intel-rapl:{n}", "psys")
    assert "there are several" in absent(discover_rapl(tmp_path))[0].reason


@pytest.mark.parametrize(
    ("cpu", "advice"),
    [
        (INTEL.format(model=63), "modprobe"),
        (INTEL.format(model=63).replace("vme", "vme hypervisor"), "measure on the machine itself"),
        ("Features : asimd\n", ""),
    ],
)
def test_no_powercap(tmp_path: Path, cpu: str, advice: str) -> None:
    cpuinfo(tmp_path, cpu)
    only = absent(discover_rapl(tmp_path))[0]
    assert only.reason.startswith(f"no {tmp_path}/sys/class/powercap")
    assert advice in only.advice
    assert bool(only.advice) == bool(advice)


def test_powercap_hidden_by_a_container(tmp_path: Path) -> None:
    (tmp_path / "sys/class/powercap/intel-rapl:0").mkdir(parents=True)
    assert "systempaths=unconfined" in absent(discover_rapl(tmp_path))[0].advice
