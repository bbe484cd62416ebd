"""`edgebench quality`: perplexity of engines on a text, and how far their predictions lie from a reference's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
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
from edgelm.bench.quality_gate import gate_verdict, quality_name
from edgelm.bench.record import Quality, Record, State
from edgelm.bench.record_file import require_records, write_record
from edgelm.bench.report.section import NOTHING, Section
from edgelm.bench.report.tables import print_section
from edgelm.bench.run_clock import RunClock
from edgelm.errors import InvalidRequestError
from edgelm.runtime.catalogue import resolve_model


def quality(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="GGUF files, exported folders or catalogue names; several need --reference."),
    ],
    text: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Text that is predicted, in UTF-8.")],
    reference: Annotated[
        str,
        typer.Option(metavar="MODEL", help="The model to compare with, of the same vocabulary.", show_default="MODEL itself at f32"),
    ] = "",
    backends: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="edgelm's engines; NAME:int8 or NAME:f32 asks for that precision of activations.")
    ] = "cpu",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text, at most.")] = 4096,
    window: Annotated[
        str, typer.Option(metavar="N,N", help="Tokens that are predicted together, from an empty context; figures for each.")
    ] = "512",
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 for as many as there are cores.")] = 0,
    gate: Annotated[
        str,
        typer.Option(metavar="P%", help="End with exit code 3 if a perplexity is higher than the reference's by more than this."),
    ] = "",
    json_file: options.Json = None,
) -> None:
    """Perplexity of engines and model files on a text, and how far they lie from a reference (KL divergence, top token)."""
    allowed = options.fraction(gate, "--gate") if gate else None
    engines = tuple(_engine(name) for name in options.names(backends))
    paths, theirs = [resolve_model(model) for model in models], resolve_model(reference) if reference else None
    tests = [QualityTest(text, theirs, tokens, n_window, allowed) for n_window in options.numbers(window, "--window", 2)]
    n_threads = threads or choose_threads().n_threads
    if json_file is not None:
        require_records()  # a record that cannot be kept is told before minutes are spent on it
    clock = RunClock.start()
    found: list[Quality] = []
    state: State = "complete"
    with Console(stderr=True).status("starting") as status:
        try:
            for test in tests:
                for each in qualities(paths, engines, test, n_threads, status.update):
                    found.append(each)
        except KeyboardInterrupt:
            state = "interrupted"
    settings = {"model": " ".join(models), "text": text, "reference": reference, "backends": backends, "tokens": tokens, "window": window}
    record = Record(
        kind="run",
        id=clock.id,
        started=clock.started,
        machine=describe_machine(),
        settings={name: str(value) for name, value in (settings | {"threads": n_threads, "gate": gate}).items()},
        model=describe_model(paths[0]),
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
    for _, same_windows in groupby(record.quality, key=lambda q: q.n_window):
        found = list(same_windows)
        if found[0].model is None:
            console.print(_engines(found))
        else:
            print_section(_models(found), console)
        for each in found:
            verdict = gate_verdict(each)
            if verdict:
                console.print(verdict, style=None if each.passed else "red", markup=False, highlight=False, soft_wrap=True)
    if record.reason:
        console.print(record.reason, markup=False)


def _engines(found: Sequence[Quality]) -> Table:
    """Of one model: a column for each engine, so that it fits a narrow terminal."""
    table = Table(title=escape(_title(found)), caption=escape(_remark(found)))
    table.add_column("")
    for each in found:
        table.add_column(quality_name(each), justify="right")
    for name, show in _FIGURES.items():
        cells = [show(each) for each in found]
        if any(cells):
            table.add_row(name, *cells)
    return table


def _models(found: Sequence[Quality]) -> Section:
    """Of several models: a row for each, since there may be many."""
    figures = {name: show for name, show in _FIGURES.items() if any(map(show, found))}
    rows = tuple((quality_name(each), *(show(each) or NOTHING for show in figures.values())) for each in found)
    return Section(_title(found), ("model", *figures), rows, remark=_remark(found))


def _title(found: Sequence[Quality]) -> str:
    return f"Beside {found[0].reference}, perplexity {found[0].reference_perplexity:.2f}"


def _remark(found: Sequence[Quality]) -> str:
    first = found[0]
    ratios = f"; ratios are of pairs, to {quality_name(first)}" if len(found) > 1 else ""
    return f"{first.n_tokens:,} tokens of {first.text} in windows of {first.n_window}; KL in nats; ± is one standard error{ratios}"


def _paired(ratio: float | None, error: float | None) -> str:
    return "" if ratio is None or error is None else f"{ratio:.3f} ± {error:.3f}"


def _kl_ratio(q: Quality) -> str:
    return _paired(q.beside_first.kl_ratio, q.beside_first.se_kl_ratio) if q.beside_first else ""


def _perplexity_ratio(q: Quality) -> str:
    if q.beside_first is None:
        return ""
    ratio = math.exp(q.beside_first.log_ratio)
    return _paired(ratio, ratio * q.beside_first.se_log_ratio)


_FIGURES: dict[str, Callable[[Quality], str]] = {
    "MB": lambda q: f"{q.model.n_bytes / 1e6:,.1f}" if q.model else "",
    "perplexity": lambda q: f"{q.perplexity:.2f} ± {q.se_perplexity:.2f}",
    "change": lambda q: f"{math.expm1(q.log_ratio):+.2%} ± {q.se_log_ratio:.2%}",
    "mean KL": lambda q: f"{q.mean_kl:.2e} ± {q.se_mean_kl:.0e}",
    "median KL": lambda q: f"{q.median_kl:.2e}",
    "99% KL": lambda q: f"{q.p99_kl:.2e}",
    "largest KL": lambda q: f"{q.max_kl:.2e}",
    "same top token": lambda q: f"{q.top_agreement:.1%} ± {q.se_top_agreement:.1%}",
    "KL / first": _kl_ratio,
    "PPL / first": _perplexity_ratio,
}
