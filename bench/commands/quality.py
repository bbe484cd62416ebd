"""`edgebench quality`: perplexity of engines on a text, and how far their predictions lie from a reference's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgelm.backends.cpu.topology import choose_threads
from edgelm.backends.registry import PRECISIONS
from edgelm.bench.commands import options
from edgelm.bench.machine import describe_machine
from edgelm.bench.model_facts import describe_model
from edgelm.bench.quality import Engine, QualityTest, qualities
from edgelm.bench.quality_gate import gate_verdict
from edgelm.bench.record import Quality, Record, State
from edgelm.bench.record_file import write_record
from edgelm.bench.run_clock import RunClock
from edgelm.errors import InvalidRequestError
from edgelm.runtime.catalogue import resolve_model


def quality(
    model: options.Model,
    text: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Text that is predicted, in UTF-8.")],
    reference: Annotated[
        str,
        typer.Option(metavar="MODEL", help="The model to compare with, of the same vocabulary.", show_default="MODEL itself at f32"),
    ] = "",
    backends: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="edgelm's engines; NAME:int8 or NAME:f32 asks for that precision of activations.")
    ] = "cpu",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text, at most.")] = 4096,
    window: Annotated[int, typer.Option(min=2, help="Tokens that are predicted together, from an empty context.")] = 512,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 for as many as there are cores.")] = 0,
    gate: Annotated[
        str,
        typer.Option(metavar="P%", help="End with exit code 3 if an engine's perplexity is higher than the reference's by more than this."),
    ] = "",
    json_file: options.Json = None,
) -> None:
    """Perplexity of engines on a text, and how far their predictions lie from a reference's (KL divergence, top token)."""
    allowed = options.fraction(gate, "--gate") if gate else None
    engines = tuple(_engine(name) for name in options.names(backends))
    path, theirs = resolve_model(model), resolve_model(reference) if reference else None
    n_threads = threads or choose_threads().n_threads
    clock = RunClock.start()
    found: list[Quality] = []
    state: State = "complete"
    with Console(stderr=True).status("starting") as status:
        try:
            for each in qualities(path, engines, QualityTest(text, theirs, tokens, window, allowed), n_threads, status.update):
                found.append(each)
        except KeyboardInterrupt:
            state = "interrupted"
    settings = {"model": model, "text": str(text), "reference": reference, "backends": backends, "tokens": tokens, "window": window}
    record = Record(
        kind="run",
        id=clock.id,
        started=clock.started,
        machine=describe_machine(),
        settings={name: str(value) for name, value in (settings | {"threads": n_threads, "gate": gate}).items()},
        model=describe_model(path),
        seconds=clock.seconds,
        clock_step_s=clock.step_s,
        state=state,
        reason="" if state == "complete" else "ended by Ctrl-C; what was measured before is kept",
        quality=tuple(found),
    )
    _print(record, Console())
    if json_file is not None:
        write_record(json_file, record)
    if state == "interrupted":
        raise typer.Exit(130)
    if any(each.passed is False for each in found):
        raise typer.Exit(3)


def _engine(text: str) -> Engine:
    """ "cpu" or "cpu:f32"."""
    name, colon, precision = text.partition(":")
    if colon and precision not in PRECISIONS:
        raise InvalidRequestError(f"--backends has {text!r}; after the colon write {' or '.join(PRECISIONS)}")
    return name, precision or None


def _print(record: Record, console: Console) -> None:
    if record.quality:
        console.print(_table(record.quality))
    for each in record.quality:
        verdict = gate_verdict(each)
        if verdict:
            console.print(verdict, style=None if each.passed else "red", markup=False, highlight=False, soft_wrap=True)
    if record.reason:
        console.print(record.reason, markup=False)


def _table(found: Sequence[Quality]) -> Table:
    """A column for each engine, so that it fits a narrow terminal."""
    first = found[0]
    caption = f"{first.n_tokens:,} tokens of {first.text} in windows of {first.n_window}; KL in nats; ± is one standard error"
    table = Table(title=escape(f"Beside {first.reference}, perplexity {first.reference_perplexity:.2f}"), caption=escape(caption))
    table.add_column("")
    for each in found:
        table.add_column(f"{each.engine} {each.precision}", justify="right")
    rows: dict[str, Callable[[Quality], str]] = {
        "perplexity": lambda q: f"{q.perplexity:.2f} ± {q.se_perplexity:.2f}",
        "change": lambda q: f"{math.expm1(q.log_ratio):+.2%} ± {q.se_log_ratio:.2%}",
        "mean KL": lambda q: f"{q.mean_kl:.2e} ± {q.se_mean_kl:.0e}",
        "median KL": lambda q: f"{q.median_kl:.2e}",
        "99% KL": lambda q: f"{q.p99_kl:.2e}",
        "largest KL": lambda q: f"{q.max_kl:.2e}",
        "same top token": lambda q: f"{q.top_agreement:.1%} ± {q.se_top_agreement:.1%}",
    }
    for name, show in rows.items():
        table.add_row(name, *(show(each) for each in found))
    return table
