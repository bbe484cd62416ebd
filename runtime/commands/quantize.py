"""`edgelm quantize`: a model with fewer bits per weight, as a GGUF file."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelm.runtime.calibration_windows import CALIBRATION_TOKENS
from edgelm.runtime.commands import options
from edgelm.runtime.quantize import DEFAULT_FORMAT

if TYPE_CHECKING:
    from edgelm.runtime.quantize_report import QuantizeReport, TensorReport

_FORMATS = "Formats"
_TEXT = "Calibration"
_RUN = "Running"

_PLAN = "Mixed precision"

Format = Annotated[
    str | None,
    typer.Option(
        help="q4_0, q4_1, iq4_nl, q4_k, iq4_xs, q5_0, q5_1, q5_k, q6_k, q8_0; keep: the source's own.", show_default=DEFAULT_FORMAT
    ),
]
BitsPerWeight = Annotated[
    float | None, typer.Option(metavar="BITS", help="Plan a format for each matrix: so many bits on average.", rich_help_panel=_PLAN)
]
Size = Annotated[str | None, typer.Option(metavar="SIZE", help="The same, for a file of at most so much, as 90MB.", rich_help_panel=_PLAN)]
MaxKl = Annotated[
    float | None, typer.Option("--max-kl", metavar="NATS", help="The same, for so much predicted KL divergence.", rich_help_panel=_PLAN)
]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", metavar="FILE", help="Follow the plan of an earlier run, OUT.plan.json.", rich_help_panel=_PLAN)
]
EmbeddingFormat = Annotated[
    str | None, typer.Option(metavar="FORMAT", help="Of token_embd.weight.", show_default="q8_0", rich_help_panel=_FORMATS)
]
OutputFormat = Annotated[
    str | None, typer.Option(metavar="FORMAT", help="Of output.weight.", show_default="q8_0", rich_help_panel=_FORMATS)
]
TensorFormat = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor",
        metavar="PATTERN=FORMAT",
        help="An exception, as 'blk.*.ffn_down.weight=q5_0'; may come again.",
        rich_help_panel=_FORMATS,
    ),
]
AllowRequantize = Annotated[
    bool, typer.Option("--allow-requantize", help="Quantize again what the source has in few bits already.", rich_help_panel=_FORMATS)
]
Method = Annotated[
    str | None, typer.Option(help="gptq, search or round.", show_default="gptq with a calibration text, else search", rich_help_panel=_TEXT)
]
Calibration = Annotated[
    Path | None, typer.Option(metavar="TEXT", help="A text file of what the model will read and write.", rich_help_panel=_TEXT)
]
CalibrationTokens = Annotated[int, typer.Option(help="How many tokens of it are used.", min=1, rich_help_panel=_TEXT)]
Imatrix = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Importances instead of a text, as of llama-imatrix.", rich_help_panel=_TEXT)
]
ScaleChannels = Annotated[
    bool | None,
    typer.Option(
        "--scale-channels/--no-scale-channels",
        help="Scale channels between layers first, as AWQ does.",
        show_default="where inputs are known",
        rich_help_panel=_TEXT,
    ),
]
MaxMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Stop beyond so much memory, as 4GB.", show_default="what is free", rich_help_panel=_RUN)
]
Restart = Annotated[bool, typer.Option("--restart", help="Discard what an interrupted run has left.", rich_help_panel=_RUN)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.", rich_help_panel=_RUN)]


def quantize(
    model: options.Model,
    out: Annotated[Path, typer.Argument(help="The new GGUF file.")],
    format: Format = None,
    calibration: Calibration = None,
    calibration_tokens: CalibrationTokens = CALIBRATION_TOKENS,
    method: Method = None,
    imatrix: Imatrix = None,
    scale_channels: ScaleChannels = None,
    embedding_format: EmbeddingFormat = None,
    output_format: OutputFormat = None,
    tensor: TensorFormat = None,
    allow_requantize: AllowRequantize = False,
    bits_per_weight: BitsPerWeight = None,
    size: Size = None,
    max_kl: MaxKl = None,
    plan: PlanFile = None,
    threads: options.Threads = None,
    max_memory: MaxMemory = None,
    restart: Restart = False,
    overwrite: Overwrite = False,
) -> None:
    """Quantize a model to a GGUF file, which edgelm and llama.cpp run. Interrupted work goes on when the same command is given again."""
    from edgelm.quant.file_size import parse_size
    from edgelm.runtime.commands.loading import locate
    from edgelm.runtime.commands.work_bar import work_bar
    from edgelm.runtime.quantize import quantize as quantize_model

    with _told_how_to_go_on(out), work_bar() as say:
        report = quantize_model(
            locate(model),
            out,
            format=format,
            method=method,
            calibration=calibration,
            calibration_tokens=calibration_tokens,
            imatrix=imatrix,
            scale_channels=scale_channels,
            embedding_format=embedding_format,
            output_format=output_format,
            tensor_formats=tensor or (),
            allow_requantize=allow_requantize,
            bits_per_weight=bits_per_weight,
            size=None if size is None else parse_size(size),
            max_kl=max_kl,
            plan=plan,
            max_memory=None if max_memory is None else parse_size(max_memory),
            n_threads=threads,
            restart=restart,
            overwrite=overwrite,
            say=say,
        )
    _print(report, imatrix is not None)


@contextmanager
def _told_how_to_go_on(out: Path) -> Iterator[None]:
    from edgelm.quant.work_folder import work_path
    from edgelm.runtime.plan_formats import damages_path

    try:
        yield
    except KeyboardInterrupt:
        for folder in (work_path(damages_path(out)), work_path(out)):
            if folder.exists():
                print(f"edgelm: interrupted; the same command goes on from here. What is done is in {folder}", file=sys.stderr)
        raise


def _print(report: QuantizeReport, has_imatrix: bool) -> None:
    from edgelm.quant.plan_table import summary
    from edgelm.runtime.commands.tables import print_facts, print_table

    if report.plan is not None:
        print_table(*summary(report.plan))
        print()
    print_table(*_table(report.tensors))
    print()
    formats = Counter((tensor.format, tensor.bits) for tensor in report.tensors)
    errors = "|(W - Q) x|^2 / |W x|^2 on the calibration text" if report.n_tokens else "|W - Q|^2 / |W|^2"
    print_facts(
        [
            ("errors", f"{errors}{', inputs weighted by the importance matrix' if has_imatrix else ''}"),
            ("formats", ", ".join(f"{name} ({n} of {bits:g} bits)" for (name, bits), n in formats.most_common())),
            ("file", str(report.target)),
            ("size", f"{report.n_bytes / 1e6:,.1f} MB, {report.bits_per_weight:.2f} bits per weight"),
            ("method", _method(report)),
            ("took", f"{report.seconds:,.0f} s, at most {report.peak_bytes / 1e6:,.0f} MB of memory"),
        ]
    )
    for note in report.notes:
        print(f"\n{note}")


def _method(report: QuantizeReport) -> str:
    scaled = ", channels scaled" if report.scaled_channels else ""
    return f"{report.method}{scaled}" + (f", calibrated on {report.n_tokens:,} tokens" if report.n_tokens else "")


def _table(tensors: tuple[TensorReport, ...]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row for each block and for each matrix beside them. What a whole column has in common stands in its head, to fit a terminal."""
    blocks: dict[str, dict[str, TensorReport]] = {}
    others = []
    for tensor in tensors:
        match = re.fullmatch(r"blk\.(\d+)\.(?:attn_|ffn_)?(.+)\.weight", tensor.name)
        if match:
            blocks.setdefault(match[1], {})[match[2]] = tensor
        else:
            others.append((tensor.name.removesuffix(".weight"), f"{tensor.format} {_error(tensor)}"))
    parts = list(dict.fromkeys(part for cells in blocks.values() for part in cells))
    formats = {part: {cells[part].format for cells in blocks.values() if part in cells} for part in parts}
    common = {part: next(iter(found)) for part, found in formats.items() if len(found) == 1}
    header = ("BLOCK", *(f"{part.upper()}\n{common[part]}" if part in common else part.upper() for part in parts))
    rows = [(name, text, *[""] * (len(parts) - 1)) for name, text in others]
    for number, cells in sorted(blocks.items(), key=lambda row: int(row[0])):
        rows.append((number, *(_cell(cells[part], part in common) if part in cells else "" for part in parts)))
    return header, rows


def _cell(tensor: TensorReport, is_common: bool) -> str:
    return _error(tensor) if is_common else f"{tensor.format} {_error(tensor)}"


def _error(tensor: TensorReport) -> str:
    return "kept" if tensor.error is None else f"{tensor.error:.2%}"
