"""`edgebench shape`: random-weight models to measure with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgelm.bench.shapes import SHAPES, write_shape


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
