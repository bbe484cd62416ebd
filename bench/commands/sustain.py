"""`edgebench sustain`: does the speed hold for minutes?"""

from __future__ import annotations

from typing import Annotated

import typer

from edgelm.backends.cpu.topology import choose_threads
from edgelm.bench.commands import options
from edgelm.bench.commands.outcome import finish, with_progress_bar
from edgelm.bench.contestants import PEERS
from edgelm.bench.power.session import PowerWishes
from edgelm.bench.sustain import SustainTest, measure_sustain


def sustain(
    model: options.MaybeModel = "",
    minutes: Annotated[float, typer.Option(min=0, help="How long to decode.")] = 10.0,
    seconds: Annotated[float | None, typer.Option(min=0, help="The same in seconds. Less than two minutes cannot tell.")] = None,
    backend: Annotated[str, typer.Option(help=f"edgelm's engine, or another program: {', '.join(PEERS)}.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute.", show_default="as many as there are cores")] = None,
    depth: Annotated[int, typer.Option(min=0, help="Tokens that the context holds at the start of every round.")] = 128,
    shape: options.Shape = "",
    format_name: options.Format = "Q4_0",
    precision: options.Precision = None,
    meter: options.Meters = None,
    estimate_tdp: options.EstimateTdp = None,
    idle_seconds: options.IdleSeconds = None,
    json_file: options.Json = None,
    html: options.Html = None,
    history: Annotated[bool, typer.Option("--history/--no-history", help="Keep the record for edgebench history.")] = True,
) -> None:
    """Decode for minutes; speed, clock, temperature and watts over time, and whether the machine throttles."""
    path = options.model_path(model, shape, format_name)
    duration = minutes * 60 if seconds is None else seconds
    test = SustainTest(path, backend, threads or choose_threads().n_threads, duration, depth, precision)
    power = PowerWishes(tuple(meter or ()), estimate_tdp, idle_seconds)
    record = with_progress_bar(lambda progress: measure_sustain(test, progress, power=power, is_random=bool(shape)))
    finish(record, json_file, html, history)
