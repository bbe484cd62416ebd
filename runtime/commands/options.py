"""Arguments and options that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgelm.runtime.catalogue import DEFAULT_MODEL

_LOAD = "Loading"
_SAMPLE = "Sampling"

Model = Annotated[str, typer.Argument(help=f"A file or folder, a name ({DEFAULT_MODEL}; see `edgelm models`), or hf:owner/repo/file.")]
Backend = Annotated[
    str | None,
    typer.Option(
        help="The engine that computes; `edgelm doctor` lists them.", show_default="cpu; onnx for an export", rich_help_panel=_LOAD
    ),
]
BackendOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An option of the engine; may be given several times.", rich_help_panel=_LOAD),
]
Threads = Annotated[int | None, typer.Option(help="Threads that compute.", min=1, show_default="the physical cores", rich_help_panel=_LOAD)]
Ctx = Annotated[int | None, typer.Option(help="Tokens of context.", min=1, show_default="the model's, up to 4096", rich_help_panel=_LOAD)]
Precision = Annotated[
    str | None,
    typer.Option(help="Of the activations: int8, or f32 (exact and slower).", show_default="the engine's choice", rich_help_panel=_LOAD),
]

Route = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Ask a cloud where this file allows it and an answer here is not trusted.", exists=True, dir_okay=False
    ),
]

System = Annotated[str | None, typer.Option(help="A system message before the conversation.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens to write at most.", rich_help_panel=_SAMPLE)]
Temperature = Annotated[float, typer.Option(help="0 always takes the most likely token.", rich_help_panel=_SAMPLE)]
TopK = Annotated[int, typer.Option(help="Choose among the k most likely tokens; 0 for all.", rich_help_panel=_SAMPLE)]
TopP = Annotated[float, typer.Option(help="Choose among the tokens that carry this share of probability.", rich_help_panel=_SAMPLE)]
MinP = Annotated[float, typer.Option(help="Drop tokens less likely than this share of the best.", rich_help_panel=_SAMPLE)]
RepeatPenalty = Annotated[float, typer.Option(help="Above 1 makes recent tokens less likely.", rich_help_panel=_SAMPLE)]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.", rich_help_panel=_SAMPLE)]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be given several times.", rich_help_panel=_SAMPLE)]
