"""The `edgebench` command: speed and quality of edgelm beside other programs.

Exit codes: 0 done, 1 an error edgelm can explain, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from edgelm.backends.cpu.topology import choose_threads
from edgelm.backends.registry import PRECISIONS
from edgelm.bench.compare import PEERS, Comparison, Measurement, Workload
from edgelm.bench.compare import compare as compare_engines
from edgelm.bench.judge import Judgement
from edgelm.bench.judge import judge as judge_model
from edgelm.bench.shapes import SHAPES, write_shape
from edgelm.errors import EdgeLMError, InvalidRequestError, ModelFileError
from edgelm.quant.exported_folder import is_exported_folder
from edgelm.runtime.catalogue import resolve_model

app = typer.Typer(
    name="edgebench",
    help="Measure edgelm beside other programs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Path of a GGUF file or of an exported folder, or a catalogue name.")]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Also write the record to this file.")]
PrecisionOption = Annotated[
    Literal["int8", "f32"] | None, typer.Option(help="Precision of edgelm's activations.", show_default="the engine's choice")
]
BackendOption = Annotated[str, typer.Option(help="edgelm's engine.")]


@app.command()
def compare(
    model: ModelArgument,
    threads: Annotated[str, typer.Option(metavar="N,N", help="Thread counts. [default: 1 and as many as there are cores]")] = "",
    prompt: Annotated[int, typer.Option(min=0, help="Tokens of a prefill; 0 for none.")] = 512,
    generate: Annotated[int, typer.Option(min=0, help="Tokens decoded one by one; 0 for none.")] = 128,
    repeat: Annotated[int, typer.Option(min=1, help="Turns of each engine.")] = 5,
    busy: Annotated[bool, typer.Option("--busy", help="Run one spinning process beside both engines.")] = False,
    precision: PrecisionOption = None,
    backend: BackendOption = "cpu",
    peer: Annotated[str, typer.Option(help=f"The other program: {', '.join(PEERS)}.")] = "llama.cpp",
    json_file: JsonOption = None,
) -> None:
    """Speed of an edgelm engine and of another program on the same model with the same threads, taking turns."""
    console = Console()
    workload = Workload(_thread_counts(threads), prompt, generate, repeat, busy, precision, backend, peer)
    path = _exported_folder(model) if peer == "onnxruntime-genai" else _gguf_file(model)
    with console.status("starting") as status:
        comparison = compare_engines(path, workload, status.update)
    console.print(_comparison_table(comparison))
    _write_json(json_file, asdict(comparison))


@app.command()
def shape(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(SHAPES)}.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The GGUF file to write.")],
    format_name: Annotated[str, typer.Option("--format", help="Number format of the linear layers.")] = "Q4_0",
) -> None:
    """Write a random-weight model of a published shape, to measure speed with."""
    console = Console()
    with console.status(f"writing {out}"):
        write_shape(out, name, format_name)
    console.print(f"{out}: {name} in {format_name.upper()}, {out.stat().st_size / 1e6:,.0f} MB")


@app.command()
def divergence(
    model: ModelArgument,
    text: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Text whose first tokens are predicted.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to compare on.")] = 256,
    precision: Annotated[str, typer.Option(metavar="P,P", help="Precisions of edgelm's activations: int8, f32, or both.")] = "int8",
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 for as many as there are cores.")] = 0,
    backend: BackendOption = "cpu",
    exported: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A folder exported from MODEL: compare what it computes instead.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The model with float32 weights; written if it is not there, and kept.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """How far predictions lie from those of llama.cpp on the same weights in float32: edgelm's, and llama.cpp's own on the file."""
    console = Console()
    precisions = _precisions(precision)
    n_threads = threads or choose_threads().n_threads
    folder = _exported_folder(str(exported)) if exported else None
    if folder is not None:
        backend = "onnx"
    with console.status("starting") as status:
        result = judge_model(_gguf_file(model), _read_text(text), tokens, precisions, n_threads, status.update, judge, backend, folder)
    console.print(_judgement_table(result))
    _write_json(json_file, asdict(result))


def main() -> None:
    """Run the command line of this process, and end the process with its exit code."""
    try:
        app()
    except EdgeLMError as error:
        Console(stderr=True).print(f"edgebench: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _gguf_file(model: str) -> Path:
    path = resolve_model(model)
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder, but llama.cpp reads GGUF files only; give the path of one")
    return path


def _exported_folder(model: str) -> Path:
    path = resolve_model(model)
    if not is_exported_folder(path):
        raise ModelFileError(
            f"{path} is no exported folder, but onnxruntime-genai reads nothing else; make one with: edgelm export {model} OUT"
        )
    return path


def _thread_counts(text: str) -> tuple[int, ...]:
    if not text:
        return tuple(sorted({1, choose_threads().n_threads}))
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidRequestError(f"--threads is {text!r}; give thread counts separated by commas, such as 1,2") from None


def _precisions(text: str) -> list[str]:
    parts = text.split(",")
    for part in parts:
        if part not in PRECISIONS:
            raise InvalidRequestError(f"--precision is {text!r}; give {' or '.join(PRECISIONS)}, or both separated by a comma")
    return parts


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path} cannot be read as UTF-8 text ({error}); give another file") from error


def _write_json(path: Path | None, record: object) -> None:
    if path is None:
        return
    try:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written ({error.strerror or error}); choose another place") from error


def _comparison_table(comparison: Comparison) -> Table:
    workload = comparison.workload
    title = f"{comparison.model} on {comparison.machine.cpu}"
    caption = f"tokens per second, median of {workload.repeat} turns{'; one core busy with another process' if workload.busy else ''}"
    table = Table(title=title, caption=caption)
    for heading in ("threads", "phase", f"edgelm {workload.backend}", workload.peer, "ratio", "min to max"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for measured in comparison.measurements:
        table.add_row(*_cells(measured))
    return table


def _cells(measured: Measurement) -> tuple[str, ...]:
    return (
        str(measured.n_threads),
        f"{measured.phase} {measured.n_tokens}",
        f"{measured.edgelm_median:.1f}",
        f"{measured.peer_median:.1f}",
        f"{measured.ratio:.2f}",
        f"{min(measured.ratios):.2f} to {max(measured.ratios):.2f}",
    )


def _judgement_table(result: Judgement) -> Table:
    table = Table(title="Divergence from llama.cpp on float32 weights", caption=f"over {result.llamacpp.n_tokens} tokens; KL in nats")
    for heading in ("engine", "mean KL", "largest KL", "top token agrees"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    engines = {f"edgelm {result.backend} {precision}": measured for precision, measured in result.edgelm.items()} | {
        "llama.cpp": result.llamacpp
    }
    for name, measured in engines.items():
        table.add_row(name, f"{measured.mean_kl:.3e}", f"{measured.max_kl:.3e}", f"{measured.top_agreement:.1%}")
    return table
