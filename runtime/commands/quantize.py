"""`edgelm quantize`: a model with fewer bits per weight, as a GGUF file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelm.runtime.calibration_windows import CALIBRATION_TOKENS
from edgelm.runtime.commands import options
from edgelm.runtime.quantize import DEFAULT_FORMAT

if TYPE_CHECKING:
    from edgelm.runtime.quantize import QuantizeReport, TensorReport

_FORMATS = "Formats"
_TEXT = "Calibration"
_RUN = "Running"

Format = Annotated[str, typer.Option(help="q4_0, q4_1, iq4_nl, q4_k, iq4_xs, q5_0, q5_1, q5_k, q6_k, q8_0; keep: the source's own.")]
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
MaxMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Stop beyond so much memory, as 4GB.", show_default="what is free", rich_help_panel=_RUN)
]
Restart = Annotated[bool, typer.Option("--restart", help="Discard what an interrupted run has left.", rich_help_panel=_RUN)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.", rich_help_panel=_RUN)]


def quantize(
    model: options.Model,
    out: Annotated[Path, typer.Argument(help="The new GGUF file.")],
    format: Format = DEFAULT_FORMAT,
    calibration: Calibration = None,
    calibration_tokens: CalibrationTokens = CALIBRATION_TOKENS,
    method: Method = None,
    imatrix: Imatrix = None,
    embedding_format: EmbeddingFormat = None,
    output_format: OutputFormat = None,
    tensor: TensorFormat = None,
    allow_requantize: AllowRequantize = False,
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

    with work_bar() as say:
        report = quantize_model(
            locate(model),
            out,
            format=format,
            method=method,
            calibration=calibration,
            calibration_tokens=calibration_tokens,
            imatrix=imatrix,
            embedding_format=embedding_format,
            output_format=output_format,
            tensor_formats=tensor or (),
            allow_requantize=allow_requantize,
            max_memory=None if max_memory is None else parse_size(max_memory),
            n_threads=threads,
            restart=restart,
            overwrite=overwrite,
            say=say,
        )
    _print(report)


def _print(report: QuantizeReport) -> None:
    from edgelm.runtime.commands.tables import print_facts, print_table

    print_table(*_table(report.tensors))
    print()
    print_facts(
        [
            ("file", str(report.target)),
            ("size", f"{report.n_bytes / 1e6:,.1f} MB, {report.bits_per_weight:.2f} bits per weight"),
            ("method", report.method + (f", calibrated on {report.n_tokens:,} tokens" if report.n_tokens else "")),
            ("took", f"{report.seconds:,.0f} s, at most {report.peak_bytes / 1e6:,.0f} MB of memory"),
        ]
    )
    for note in report.notes:
        print(f"\n{note}")


def _table(tensors: tuple[TensorReport, ...]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row for each block and for each matrix beside them: formats, and errors of the outputs in percent."""
    rows: dict[str, dict[str, str]] = {}
    for tensor in tensors:
        match = re.fullmatch(r"blk\.(\d+)\.(.+)\.weight", tensor.name)
        where, part = (
            (match[1], match[2].removeprefix("attn_").removeprefix("ffn_")) if match else (tensor.name.removesuffix(".weight"), "")
        )
        error = "kept" if tensor.error is None else f"{tensor.error:.2%}"
        rows.setdefault(where, {})[part] = f"{tensor.format} {error}"
    parts = list(dict.fromkeys(part for cells in rows.values() for part in cells if part))
    header = ("BLOCK", *(part.upper() for part in parts))
    return header, [
        (where, *(cells.get(part, cells.get("", "") if i == 0 else "") for i, part in enumerate(parts))) for where, cells in rows.items()
    ]
