"""The headline is the widest meter that may be believed; parts are never added to what includes them."""

from __future__ import annotations

import pytest
from power_machine import trace

from edgelm.bench.power.base import AbsentMeter
from edgelm.bench.power.headline import choose_headline, judge_traces, why_none
from edgelm.bench.record import MeterTrace


def counter(name: str, watts: float, **fields: object) -> MeterTrace:
    return trace([n * watts * 0.1 for n in range(50)], name=name, **fields)


PACKAGE = counter("package", 20.0)
CORE = counter("core", 12.0, scope="component", within="package")
PLUG = trace([30.0 + 0.1 * (n % 3) for n in range(50)], name="plug", scope="wall", quantity="power")


@pytest.mark.parametrize(
    ("traces", "headline"),
    [
        ([CORE, PACKAGE], "package"),
        ([CORE, PACKAGE, PLUG], "plug"),
        ([CORE], None),
        ([PACKAGE, counter("better", 19.0, kind="vendor model", uncertainty=0.001)], "package"),
        ([PACKAGE, counter("better", 19.0, uncertainty=0.01)], "better"),
        ([PACKAGE, counter("guess", 90.0, scope="wall", kind="estimate")], "package"),
        ([PACKAGE, counter("dead", 0.0, scope="device")], "package"),
        ([PACKAGE, counter("cut", 30.0, scope="device"), trace([1.0, 2.0], name="gone", scope="wall", problem="gone")], "cut"),
        ([], None),
    ],
)
def test_the_widest_usable_meter(traces: list[MeterTrace], headline: str | None) -> None:
    assert choose_headline(judge_traces(traces)) == headline


def test_one_socket_does_not_stand_for_both() -> None:
    parts = [counter(f"package-{n}", 20.0, within="packages") for n in range(2)]
    assert choose_headline(judge_traces([counter("packages", 40.0), *parts])) == "packages"
    assert choose_headline(judge_traces([trace([0.0, 1.0], name="packages", problem="package-1 is gone"), *parts])) is None


def test_a_whole_that_shows_less_than_its_part_is_not_believed() -> None:
    platform, package = counter("psys", 5.0, scope="device"), counter("package", 20.0, within="psys")
    judged = judge_traces([platform, package])
    assert judged[0].problem == "it shows 5.00 W in the mean, but its part package 20.00 W"
    assert choose_headline(judged) == "package"


def test_why_there_is_none() -> None:
    assert why_none([trace([1.0, 2.0], name="plug", problem="it does not answer")], []) == "plug: it does not answer"
    absent = [AbsentMeter("rapl", "only root may read it", "run: sudo chmod"), AbsentMeter("hwmon", "no sensor")]
    assert why_none([], absent).startswith("no power meter was found; rapl: only root may read it: run: sudo chmod; measure at the socket")
    assert why_none([CORE], absent).startswith("only parts of the machine are measured: core; rapl: only root may read it: run: sudo chmod")
    assert why_none([], absent[1:]).startswith("no power meter was found; measure at the socket, with --meter")
