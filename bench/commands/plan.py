"""`edgebench plan`: what a wished speed needs, what this device has, and what could close the gap."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

from edgelm.backends.base import Progress
from edgelm.backends.cpu.topology import choose_threads
from edgelm.bench.commands import options
from edgelm.bench.levers import Lever, find_levers, rate
from edgelm.bench.limits import measure_limits
from edgelm.bench.plan import Device, Plan, PlannedModel, Target, file_model, make_plan, shape_model
from edgelm.bench.power.base import AbsentMeter
from edgelm.bench.power.discover import close_all, discover
from edgelm.bench.record_file import write_text
from edgelm.errors import InvalidRequestError
from edgelm.quant.open_model import open_model
from edgelm.runtime.catalogue import resolve_model


def plan(
    tokens_per_second: Annotated[float, typer.Option(metavar="N", help="Speed wished for one user, token by token.")],
    watts: Annotated[float | None, typer.Option(metavar="W", help="Power that the device may take.")] = None,
    shape: options.Shape = "",
    model: Annotated[str, typer.Option(metavar="MODEL", help="Instead of --shape: a GGUF file, or a catalogue name.")] = "",
    format_name: options.Format = "Q4_0",
    depth: Annotated[int, typer.Option(min=0, help="Tokens in the context.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads to measure this device with; 0 for as many as there are cores.")] = 0,
    bandwidth: Annotated[
        float | None, typer.Option(metavar="GB/s", help="Memory bandwidth of a device that is not here; nothing is measured.")
    ] = None,
    json_file: options.Json = None,
) -> None:
    """What bandwidth, bits per weight and joules per token a wished speed needs, and which lever closes the gap on this device."""
    console = Console()
    target = Target(tokens_per_second, depth, watts)
    planned = _planned(model, shape, format_name)
    with console.status("measuring this device") as status:
        device = _device(bandwidth, threads, lambda line: status.update(f"measuring: {line}"))
    made = make_plan(planned, target, device)
    levers = find_levers(made)
    energy = _energy_note(bandwidth is None)
    console.print(_needs_table(made))
    console.print(_reach_table(made))
    console.print(_verdict(made, levers), markup=False, highlight=False)
    if levers:
        console.print(_levers_table(levers))
    console.print(energy, markup=False, highlight=False)
    if json_file is not None:
        write_text(json_file, json.dumps(_as_json(made, levers, energy), indent=2) + "\n")


def _planned(model: str, shape: str, format_name: str) -> PlannedModel:
    if bool(model) == bool(shape):
        raise InvalidRequestError("give either --shape NAME or --model FILE")
    if shape:
        return shape_model(shape, format_name)
    file = open_model(resolve_model(model))
    try:
        return file_model(file)
    finally:
        file.close()


def _device(bandwidth: float | None, threads: int, progress: Progress) -> Device:
    if bandwidth is not None:
        return Device(bandwidth * 1e9, None, "bandwidth as given")
    n_threads = threads or choose_threads().n_threads
    limits = measure_limits(n_threads, progress)
    source = f"measured with {n_threads} {'thread' if n_threads == 1 else 'threads'}, {limits.instruction}"
    return Device(limits.bytes_per_s, limits.macs_per_s, source, limits.cache_bytes, psutil.virtual_memory().total)


def _energy_note(is_here: bool) -> str:
    if not is_here:
        return "Energy: what a device that is not here takes is not known; measure it with edgebench run."
    meters = discover()
    close_all(meters)
    names = [meter.info.name for meter in meters if not isinstance(meter, AbsentMeter)]
    if names:
        return f"Energy: what this device takes per token, edgebench run measures with {', '.join(names)}."
    return "Energy: what this device takes per token is not known: no power meter was found (edgebench power list says what is missing)."


def _needs_table(plan: Plan) -> Table:
    need, target = plan.need, plan.target
    table = Table(title=f"{target.tokens_per_s:g} tokens/s of {plan.model.name} in {plan.model.format} need", caption_justify="left")
    for heading in ("", "whole model", f"exactly, context of {target.depth} tokens"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("bytes per token", _giga(need.whole_bytes_per_token, "B"), _giga(need.bytes_per_token, "B"))
    table.add_row("memory bandwidth", _giga(need.whole_bytes_per_s, "B/s"), _giga(need.bytes_per_s, "B/s"))
    table.add_row("int8 multiplications", "", _giga(need.macs_per_s, "/s"))
    if need.joules_per_token is not None:
        joules = f"{need.joules_per_token:.3g} J"
        table.add_row(f"energy per token at {target.watts:g} W", joules, joules)
    table.caption = (
        "whole model: every matrix once per token. Exactly: without the embedding's rows that are not looked up, "
        f"with norms, and with {need.kv_bytes_per_token / 1e6:,.1f} MB of KV cache (float16)"
    )
    return table


def _reach_table(plan: Plan) -> Table:
    device, need, reached = plan.device, plan.need, plan.reach
    table = Table(title=f"The device ({device.source})")
    for heading in ("", "has", "needed", "allows at most"):
        table.add_column(heading, justify="right" if heading else "left")
    has, needed = _giga(device.bytes_per_s, "B/s"), _giga(need.bytes_per_s, "B/s")
    table.add_row("memory bandwidth", has, needed, rate(reached.memory_tokens_per_s))
    if device.macs_per_s is not None and reached.arithmetic_tokens_per_s is not None:
        has, needed = _giga(device.macs_per_s, "/s"), _giga(need.macs_per_s, "/s")
        table.add_row("int8 multiplications", has, needed, rate(reached.arithmetic_tokens_per_s))
    if device.memory_bytes is not None:
        table.add_row("memory", _giga(device.memory_bytes, "B"), _giga(plan.memory_bytes, "B"), "")
    return table


def _levers_table(levers: list[Lever]) -> Table:
    table = Table(title="Levers, each at its best", show_lines=True)
    for heading in ("lever", "needs", "suffices alone", "because"):
        table.add_column(heading, justify="left")
    for lever in levers:
        needed = "" if lever.needed is None else f"{_short(lever.needed)} {lever.unit}"
        table.add_row(lever.name, needed, "yes, at best" if lever.suffices else "no", lever.arithmetic)
    return table


def _verdict(plan: Plan, levers: list[Lever]) -> str:
    best = f"at most {rate(plan.reach.tokens_per_s)}"
    notes = ""
    if plan.device.memory_bytes is not None and plan.memory_bytes > plan.device.memory_bytes:
        notes += " The model does not fit this device's memory, so it would be read from the disk, far slower."
    if plan.fits_cache:
        notes += " The weights fit the last-level cache, so memory's speed is not their limit: the true one is higher and not known."
    if plan.reach.gap <= 1:
        unknown = "" if plan.device.macs_per_s is not None else " as far as memory goes; the device's multiplications are not known"
        return f"Within reach: {best}{unknown}. Engines stay below that; edgebench run tells by how much.{notes}"
    names = [lever.name for lever in levers if lever.suffices]
    closing = f"Could close the gap, at best: {', '.join(names)}." if names else "No lever closes the gap alone."
    return f"Out of reach: {best}, and the target is {plan.reach.gap:.3g} times that. {closing}{notes}"


def _as_json(plan: Plan, levers: list[Lever], energy: str) -> Mapping[str, object]:
    return {
        "model": {"name": plan.model.name, "format": plan.model.format, "matrix_bytes": plan.model.matrix_bytes, **asdict(plan.model.cost)},
        "target": asdict(plan.target),
        "needs": {**asdict(plan.need), "bytes_per_token": plan.need.bytes_per_token, "memory_bytes": plan.memory_bytes},
        "device": asdict(plan.device),
        "reach": {**asdict(plan.reach), "fits_cache": plan.fits_cache},
        "levers": [asdict(lever) for lever in levers],
        "energy": energy,
    }


def _giga(value: float, unit: str) -> str:
    """Three digits with their prefix."""
    factor, prefix = (1e12, "T") if value >= 1e12 else (1e9, "G") if value >= 1e9 else (1e6, "M")
    scaled = value / factor
    digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
    return f"{scaled:.{digits}f} {prefix}{unit}"


def _short(value: float) -> str:
    return f"{value / 1e9:.3g} G" if value >= 1e6 else f"{value:.0f}" if value == int(value) else f"{value:.2f}"
