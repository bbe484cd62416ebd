"""`edgebench run`: engines taking turns on one model; speed, latency, energy, roofline and quality in one record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgelm.backends.cpu.topology import choose_threads
from edgelm.bench.commands import options
from edgelm.bench.commands.interrupts import one_interrupt
from edgelm.bench.commands.outcome import finish, with_progress_bar
from edgelm.bench.contestants import PEERS
from edgelm.bench.interleave import Workload
from edgelm.bench.power.session import PowerWishes
from edgelm.bench.quality import QualityTest
from edgelm.bench.run import run_benchmark
from edgelm.errors import InvalidRequestError
from edgelm.runtime.catalogue import resolve_model


def run(
    model: options.MaybeModel = "",
    backends: Annotated[str, typer.Option(metavar="NAME,NAME", help="edgelm's engines, in the order of their turns.")] = "cpu",
    peers: Annotated[str, typer.Option(metavar="NAME,NAME", help=f"Other programs beside them: {', '.join(PEERS)}.")] = "",
    threads: Annotated[str, typer.Option(metavar="N,N", help="Thread counts.", show_default="as many as there are cores")] = "",
    prompt: Annotated[str, typer.Option(metavar="N,N", help="Tokens of a prompt, each measured by itself; 0 for no prefill.")] = "512",
    generate: Annotated[int, typer.Option(min=0, help="Tokens generated one by one; 0 for none.")] = 128,
    depth: Annotated[str, typer.Option(metavar="N,N", help="Tokens that the context holds before.")] = "0",
    repeat: Annotated[int, typer.Option(min=1, help="Rounds at most.")] = 10,
    within: Annotated[str, typer.Option(metavar="P%", help="Rounds end when every 95% interval is this narrow (half of it).")] = "1%",
    cold: Annotated[int, typer.Option(min=0, help="New processes for the cold time to first token; 0 for none.")] = 3,
    shape: options.Shape = "",
    format_name: options.Format = "Q4_0",
    precision: options.Precision = None,
    backend_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of a backend (BACKEND.NAME=VALUE where several run).")
    ] = None,
    busy: Annotated[bool, typer.Option("--busy", help="Run one spinning process beside the engines.")] = False,
    meter: options.Meters = None,
    estimate_tdp: options.EstimateTdp = None,
    idle_seconds: options.IdleSeconds = None,
    roofline: Annotated[bool, typer.Option("--roofline/--no-roofline", help="Measure the machine's limits, too.")] = True,
    quality: Annotated[
        Path | None, typer.Option(metavar="TEXT", exists=True, dir_okay=False, help="Also measure quality on this text.")
    ] = None,
    reference: Annotated[str, typer.Option(metavar="MODEL", help="Quality: the model to compare with.", show_default="itself at f32")] = "",
    tokens: Annotated[int, typer.Option(min=2, help="Quality: tokens of the text.")] = 4096,
    window: Annotated[int, typer.Option(min=2, help="Quality: tokens of each window.")] = 512,
    gate: Annotated[str, typer.Option(metavar="P%", help="Quality: exit with 3 if perplexity rises by more than this.")] = "",
    json_file: options.Json = None,
    html: options.Html = None,
    history: Annotated[bool, typer.Option("--history/--no-history", help="Keep the record for edgebench history.")] = True,
) -> None:
    """Tokens per second, latency, joules per token, share of the machine's limit, and quality, of engines taking turns."""
    path = options.model_path(model, shape, format_name)
    names = options.names(backends)
    workload = Workload(
        backends=names,
        peers=options.names(peers),
        threads=options.numbers(threads, "--threads", 1) if threads else (choose_threads().n_threads,),
        prompts=tuple(n for n in options.numbers(prompt, "--prompt", 0) if n),
        n_generate=generate,
        depths=options.numbers(depth, "--depth", 0),
        repeat=repeat,
        within=options.fraction(within, "--within"),
        n_cold=cold,
        busy=busy,
        precision=precision,
        options=_backend_options(names, backend_option or []),
    )
    wishes = None
    if quality is not None:
        reference_path = resolve_model(reference) if reference else None
        wishes = QualityTest(quality, reference_path, tokens, window, options.fraction(gate, "--gate") if gate else None)
    settings = {**vars(workload), "model": model or f"shape {shape} {format_name}"}
    with one_interrupt():
        record = with_progress_bar(
            lambda progress: run_benchmark(
                path,
                workload,
                settings,
                progress,
                power=PowerWishes(tuple(meter or ()), estimate_tdp, idle_seconds),
                quality=wishes,
                is_random=bool(shape),
                with_limits=roofline,
            )
        )
        finish(record, json_file, html, history)


def _backend_options(names: tuple[str, ...], given: list[str]) -> dict[str, dict[str, object]]:
    """Options by engine: each is written BACKEND.NAME=VALUE, or NAME=VALUE where one backend is measured."""
    found: dict[str, dict[str, object]] = {}
    for option in given:
        name, equals, value = option.partition("=")
        engine, dot, rest = name.partition(".")
        if dot and engine in names:
            name = rest
        elif len(names) == 1:
            engine = names[0]
        else:
            raise InvalidRequestError(f"--backend-option is {option!r}; write whose it is: {names[0]}.NAME=VALUE")
        if not equals:
            raise InvalidRequestError(f"--backend-option is {option!r}; write NAME=VALUE")
        found.setdefault(engine, {})[name] = value
    return found
