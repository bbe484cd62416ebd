"""`edgelm export`: a model as ONNX graphs, for ONNX Runtime on the CPU, on Qualcomm's NPUs or on Android."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgelm.runtime.commands import options

if TYPE_CHECKING:
    from edgelm.backends.onnx.export import ExportReport, StoredFormat

_CPU = "Target cpu"
_STATIC = "Targets qnn and nnapi"

Target = Annotated[str, typer.Option(help="cpu, qnn (Qualcomm NPUs) or nnapi (Android).")]
Context = Annotated[int | None, typer.Option(help="Tokens of context.", min=1, show_default="the model's, up to 4096")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an exported folder that is there.")]
Precision = Annotated[str | None, typer.Option(help="Of the activations: int8 or f32.", show_default="int8", rich_help_panel=_CPU)]
KvType = Annotated[str | None, typer.Option(help="Of the KV cache: f32 or f16.", show_default="f32", rich_help_panel=_CPU)]
Requantize = Annotated[
    str | None,
    typer.Option(help="q4_0 or q8_0: what formats become that fit no other way.", show_default="every weight exact", rich_help_panel=_CPU),
]
ChunkSize = Annotated[
    int | None, typer.Option("--chunk", help="Tokens of a prompt read at once.", min=1, show_default="32", rich_help_panel=_STATIC)
]
Soc = Annotated[
    str | None, typer.Option(help="qnn: the chip to compile for.", show_default="compile on the device", rich_help_panel=_STATIC)
]
WeightBits = Annotated[int | None, typer.Option(help="qnn: 8 or 4.", show_default="8", rich_help_panel=_STATIC)]
Calibration = Annotated[
    Path | None,
    typer.Option(help="qnn: a text to take the activations' ranges from.", show_default="edgelm's own", rich_help_panel=_STATIC),
]


def export(
    model: options.Model,
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    target: Target = "cpu",
    ctx: Context = None,
    overwrite: Overwrite = False,
    precision: Precision = None,
    kv_type: KvType = None,
    requantize: Requantize = None,
    chunk: ChunkSize = None,
    soc: Soc = None,
    weight_bits: WeightBits = None,
    calibration: Calibration = None,
) -> None:
    """Export a model to a folder of ONNX graphs, which `edgelm run`, `chat` and onnxruntime-genai can open."""
    from edgelm.runtime.commands.loading import locate
    from edgelm.runtime.export import export as export_model

    report = export_model(
        locate(model),
        out,
        target=target,
        n_ctx=ctx,
        precision=precision,
        kv_type=kv_type,
        requantize=requantize,
        chunk=chunk,
        soc=soc,
        weight_bits=weight_bits,
        calibration=calibration,
        overwrite=overwrite,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    _print_report(report)


def _print_report(report: ExportReport) -> None:
    from edgelm.runtime.commands.tables import print_facts

    manifest = report.manifest
    print_facts(
        [
            ("folder", str(report.folder)),
            ("target", manifest.target),
            ("context", f"{manifest.n_ctx} tokens"),
            ("precision", f"{manifest.precision} activations, {manifest.kv_type} KV cache"),
            ("graphs", ", ".join(graph.file + (f" ({graph.n_tokens} tokens)" if graph.n_tokens else "") for graph in manifest.graphs)),
            ("size", f"{sum(manifest.files.values()) / 1e6:,.1f} MB in {len(manifest.files)} files"),
            *_chip_facts(manifest.details),
        ]
    )
    if report.formats:
        _print_formats(report.formats)
    for note in report.notes:
        print(f"\n{note}")


def _chip_facts(details: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The chip that graphs were compiled for, and the files of compiled code."""
    if details.get("soc"):
        yield "chip", str(details["soc"])
    if details.get("binaries"):
        yield "compiled", ", ".join(details["binaries"])


def _print_formats(formats: Sequence[StoredFormat]) -> None:
    from edgelm.runtime.commands.tables import print_table

    print()
    header = ("FORMAT", "MATRICES", "BECAME", "WEIGHTS", "BYTES BEFORE", "BYTES AFTER")
    print_table(header, [_cells(row) for row in formats])


def _cells(row: StoredFormat) -> tuple[str, ...]:
    exactness = "exact" if row.exact else "requantized"
    return row.format, str(row.n_matrices), row.stored, exactness, f"{row.bytes_before:,}", f"{row.bytes_after:,}"
