"""`edgebench power`: which meters there are, what the idle machine takes, what it takes now."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from edgelm.bench.commands import options
from edgelm.bench.commands.power_import import import_log_command
from edgelm.bench.power.base import AbsentMeter, Meter
from edgelm.bench.power.discover import check_address, discover, open_meter
from edgelm.bench.power.headline import choose_headline, judge_traces
from edgelm.bench.power.live import Look, look
from edgelm.bench.power.sampler import Sampler
from edgelm.bench.power.session import PowerSession
from edgelm.bench.record import MeterInfo, Power
from edgelm.bench.record_file import write_text
from edgelm.errors import MeterError

app = typer.Typer(help="Power meters: which there are, and what they show.", no_args_is_help=True)
app.command("import")(import_log_command)

JsonOption = Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Also write what was read to this file.")]

_LOOK_S = (0.6, 3.0)
_REFRESH_S = 1.0


@app.command("list")
def list_meters(meter: options.Meters = None, json_file: JsonOption = None) -> None:
    """Every meter with what it shows now; every kind that is not here with the reason and what to do."""
    found = _find(meter or ())
    absent = [entry for entry in found if isinstance(entry, AbsentMeter)]
    present = [entry for entry in found if not isinstance(entry, AbsentMeter)]
    looks, headline = _look_once(present)
    console = Console()
    if looks:
        console.print(_list_table(looks, headline))
    else:
        console.print("No power meter was found.")
    if absent:
        console.print(_absent_table(absent))
    _write(json_file, {"meters": [asdict(entry) for entry in looks], "absent": [asdict(entry) for entry in absent]})


@app.command()
def idle(
    seconds: Annotated[float, typer.Option(min=0.5, help="How long to let the machine rest.")] = 10.0,
    meter: options.Meters = None,
    json_file: JsonOption = None,
) -> None:
    """What the machine takes when nothing runs: leave it alone meanwhile."""
    console = Console()
    origin = time.perf_counter()
    with PowerSession(origin, meter or ()) as session, Console(stderr=True).status(f"resting for {seconds:g} s"):
        session.idle(seconds if session.has_meter else 0.0)
    power = session.power()
    looks = [look(trace, time.perf_counter() - origin) for trace in power.traces]
    if looks:
        console.print(_idle_table(looks, power))
    if power.headline is None:
        console.print(_not_measured(power.reason), markup=False)
    _write(json_file, asdict(power))


@app.command()
def watch(
    seconds: Annotated[float | None, typer.Option(min=0.5, help="How long.", show_default="until Ctrl-C")] = None,
    meter: options.Meters = None,
    json_file: JsonOption = None,
) -> None:
    """Watts of every meter, until Ctrl-C."""
    console = Console()
    origin = time.perf_counter()
    session = PowerSession(origin, meter or ())
    if not session.has_meter:
        console.print(_not_measured(session.power().reason), markup=False)
        _write(json_file, asdict(session.power()))
        return
    try:
        with session, Live(console=console, auto_refresh=False) as live:
            while seconds is None or time.perf_counter() - origin < seconds:
                time.sleep(min(_REFRESH_S, seconds or _REFRESH_S))
                live.update(_watch_table(session.power(), time.perf_counter() - origin), refresh=True)
    except KeyboardInterrupt:
        pass  # the usual end
    _write(json_file, asdict(session.power()))


def _find(addresses: Sequence[str]) -> list[Meter | AbsentMeter]:
    """All meters; one with an address that does not answer is absent here, so that the others are shown."""
    for address in addresses:
        check_address(address)
    found: list[Meter | AbsentMeter] = []
    for address in dict.fromkeys(addresses):
        try:
            found.append(open_meter(address))
        except MeterError as error:
            found.append(AbsentMeter(address, str(error)))
    return [*found, *discover()]


def _look_once(meters: Sequence[Meter]) -> tuple[list[Look], str | None]:
    """Read for a moment, long enough that most meters have two values: the headline first, and its name."""
    origin = time.perf_counter()
    shortest, longest = _LOOK_S
    periods = [2.5 * entry.info.period_s for entry in meters]
    with Sampler(meters, origin) as sampler:
        time.sleep(min(longest, max([shortest, *periods])) if meters else 0)
    traces = judge_traces(sampler.traces())
    headline = choose_headline(traces)
    looks = [look(trace, time.perf_counter() - origin) for trace in traces]
    return sorted(looks, key=lambda entry: entry.meter.name != headline), headline


def _list_table(looks: Sequence[Look], headline: str | None) -> Table:
    leads = f"energies are taken from {headline}" if headline else "energies are taken from none of these: they see parts of the machine"
    table = Table(title="Power meters", caption=f"{leads}; ± is the relative uncertainty that its maker states")
    for heading in ("meter", "covers", "figures are", "new every", "±", "watts now"):
        table.add_column(heading, justify="right" if heading in ("new every", "±", "watts now") else "left", overflow="fold")
    for entry in looks:
        info = entry.meter
        uncertainty = "not stated" if info.uncertainty is None else f"{info.uncertainty:.1%}"
        shown = entry.problem or _watts(entry.watts)
        table.add_row(info.name, _covers(info), info.kind, _period(info.period_s), uncertainty, shown)
    return table


def _absent_table(absent: Sequence[AbsentMeter]) -> Table:
    table = Table(title="Not here")
    for heading in ("meter", "reason", "what to do"):
        table.add_column(heading, overflow="fold")
    for entry in absent:
        table.add_row(entry.name, entry.reason, entry.advice)
    return table


def _idle_table(looks: Sequence[Look], power: Power) -> Table:
    table = Table(title="Idle machine")
    for heading in ("meter", "covers", "figures are", "watts"):
        table.add_column(heading, justify="right" if heading == "watts" else "left", overflow="fold")
    for entry in looks:
        is_headline = entry.meter.name == power.headline
        mean_w = power.idle_w[0] if is_headline and power.idle_w else entry.mean_w
        name = f"{entry.meter.name} (headline)" if is_headline else entry.meter.name
        table.add_row(name, _covers(entry.meter), entry.meter.kind, entry.problem or _watts(mean_w))
    return table


def _watch_table(power: Power, now_s: float) -> Table:
    table = Table(title=f"Watts after {now_s:.0f} s", caption="Ctrl-C ends")
    for heading in ("meter", "covers", "now", "mean"):
        table.add_column(heading, justify="right" if heading in ("now", "mean") else "left", overflow="fold")
    for trace in power.traces:
        entry = look(trace, now_s)
        name = f"{entry.meter.name} (headline)" if entry.meter.name == power.headline else entry.meter.name
        table.add_row(name, _covers(entry.meter), entry.problem or _watts(entry.watts), _watts(entry.mean_w))
    return table


def _covers(info: MeterInfo) -> str:
    return f"{info.domain}, part of {info.within}" if info.within else info.domain


def _watts(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f} W"


def _period(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


def _not_measured(reason: str) -> str:
    return f"power: not measured ({reason})"


def _write(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
