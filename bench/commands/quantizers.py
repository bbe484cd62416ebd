"""`edgebench quantizers`: edgelm's and llama.cpp's INT4 of one float model, at the same bytes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from edgelm.backends.cpu.topology import choose_threads
from edgelm.bench.commands import options
from edgelm.errors import MissingPackageError, RecordError
from edgelm.runtime.calibration_windows import CALIBRATION_TOKENS

if TYPE_CHECKING:
    from edgelm.bench.quantizer_trial import TrialRow


def quantizers(
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A float model, GGUF.")],
    folder: Annotated[Path, typer.Argument(help="Where the files are made and kept; those there already are used again.")],
    calibration: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Text that the quantizers see, in UTF-8.")],
    text: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Another text, which the files predict.")],
    formats: Annotated[str, typer.Option(metavar="NAME,NAME", help="Block formats of the matrices.")] = "q4_0,q4_1,iq4_nl",
    names: Annotated[
        str,
        typer.Option("--quantizers", metavar="NAME,NAME", help="Of these; or edgelm mixed, edgelm search unscaled, edgelm gptq unscaled."),
    ] = "llama.cpp,llama.cpp imatrix,edgelm round,edgelm search,edgelm gptq",
    embedding_format: Annotated[str, typer.Option(metavar="FORMAT", help="Of embedding and output layer, in all files.")] = "q8_0",
    calibration_tokens: Annotated[int, typer.Option(min=256, help="Tokens of the calibration text.")] = CALIBRATION_TOKENS,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens that are predicted, at most.")] = 20480,
    window: Annotated[int, typer.Option(min=2, help="Tokens that are predicted together, from an empty context.")] = 512,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 for as many as there are cores.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw KL divergence against bytes here (.svg or .png).")] = None,
) -> None:
    """Quantize a float model by edgelm and by llama.cpp, with the same calibration and bytes, and compare what the files predict."""
    from edgelm.bench.quantizer_trial import TrialSettings, run_trial

    settings = TrialSettings(
        calibration, text, calibration_tokens, tokens, window, tuple(options.names(formats)), tuple(options.names(names)), embedding_format
    )
    with Console(stderr=True).status("starting") as status:
        rows = run_trial(source, folder, settings, threads or choose_threads().n_threads, status.update)
    console = Console()
    for format in settings.formats:
        console.print(_table(format, [row for row in rows if row.format == format]))
    console.print(f"KL in nats from {source.name}, on {tokens:,} tokens of {text.name} in windows of {window}, all in float32")
    console.print("± is one standard error", highlight=False)
    try:
        if json_file is not None:
            json_file.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2), encoding="utf-8")
        if plot is not None:
            _draw(rows, plot)
    except OSError as error:
        raise RecordError(f"{error.filename} cannot be written ({error.strerror}); choose another place") from error


def _table(format: str, rows: Sequence[TrialRow]) -> Table:
    table = Table(title=f"{format}, files of {' to '.join(dict.fromkeys(f'{row.n_bytes / 1e6:.1f}' for row in rows))} MB")
    table.add_column("quantizer")
    for name in ("mean KL", "/ imatrix", "top token", "perplexity"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = row.figures
        table.add_row(
            row.quantizer,
            f"{figures.mean_kl:.4f} ± {figures.se_mean_kl:.4f}",
            "" if row.kl_ratio is None else f"{row.kl_ratio.value:.3f} ± {row.kl_ratio.error:.3f}",
            f"{figures.top_agreement:.1%}",
            f"{figures.perplexity:.2f}",
        )
    return table


def _draw(rows: Sequence[TrialRow], path: Path) -> None:
    """Mean KL against bytes, a colour for each quantizer."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
    except ImportError as error:
        raise MissingPackageError(f"plots need matplotlib, which is not installed ({error}); pip install 'edgelm[bench]'") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(dict.fromkeys(row.quantizer for row in rows)):
        mine = sorted((row for row in rows if row.quantizer == name), key=lambda row: (row.n_bytes, row.format))
        x, y = [row.n_bytes / 1e6 for row in mine], [row.figures.mean_kl for row in mine]
        colour = f"C{i}"
        axes.errorbar(x, y, [row.figures.se_mean_kl for row in mine], fmt="osD^vPX*"[i % 8], color=colour, capsize=3, label=name)
        side, align = (7, "left") if name.startswith("edgelm") else (-7, "right")
        for row in mine:
            point = (row.n_bytes / 1e6, row.figures.mean_kl)
            axes.annotate(row.format, point, xytext=(side, 0), textcoords="offset points", ha=align, va="center", color=colour, fontsize=8)
    axes.set(xlabel="MB of the file", ylabel="mean KL divergence from the float model, nats", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=150)
