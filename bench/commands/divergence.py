"""`edgebench divergence`: what int8 activations cost, judged by llama.cpp on the same weights in float32."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from edgelm.backends.cpu.topology import choose_threads
from edgelm.backends.registry import PRECISIONS
from edgelm.bench.commands import options
from edgelm.bench.judge import Judgement
from edgelm.bench.judge import judge as judge_model
from edgelm.bench.record_file import write_text
from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.exported_folder import is_exported_folder
from edgelm.runtime.catalogue import resolve_model


def divergence(
    model: options.Model,
    text: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Text whose first tokens are predicted.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to compare on.")] = 256,
    precision: Annotated[str, typer.Option(metavar="P,P", help="Precisions of edgelm's activations: int8, f32, or both.")] = "int8",
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 for as many as there are cores.")] = 0,
    backend: options.Backend = "cpu",
    exported: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A folder exported from MODEL: compare what it computes instead.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The model with float32 weights; written if it is not there, and kept.")
    ] = None,
    json_file: options.Json = None,
) -> None:
    """How far predictions lie from those of llama.cpp on the same weights in float32: edgelm's, and llama.cpp's own on the file."""
    console = Console()
    precisions = _precisions(precision)
    n_threads = threads or choose_threads().n_threads
    folder = _exported_folder(exported) if exported else None
    if folder is not None:
        backend = "onnx"
    with console.status("starting") as status:
        result = judge_model(
            options.gguf_file(model), options.read_text(text), tokens, precisions, n_threads, status.update, judge, backend, folder
        )
    console.print(_table(result))
    if json_file is not None:
        write_text(json_file, json.dumps(asdict(result), indent=2) + "\n")


def _exported_folder(folder: Path) -> Path:
    path = resolve_model(str(folder))
    if not is_exported_folder(path):
        raise ModelFileError(f"{path} is no exported folder; make one with: edgelm export MODEL OUT")
    return path


def _precisions(text: str) -> tuple[str, ...]:
    parts = options.names(text)
    for part in parts:
        if part not in PRECISIONS:
            raise InvalidRequestError(f"--precision is {text!r}; give {' or '.join(PRECISIONS)}, or both separated by a comma")
    return parts


def _table(result: Judgement) -> Table:
    table = Table(title="Divergence from llama.cpp on float32 weights", caption=f"over {result.llamacpp.n_tokens} tokens; KL in nats")
    for heading in ("engine", "mean KL", "largest KL", "top token agrees"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    engines = {f"edgelm {result.backend} {precision}": measured for precision, measured in result.edgelm.items()} | {
        "llama.cpp": result.llamacpp
    }
    for name, measured in engines.items():
        table.add_row(name, f"{measured.mean_kl:.3e}", f"{measured.max_kl:.3e}", f"{measured.top_agreement:.1%}")
    return table
