"""`edgelm calibrate`: a file of importances, from a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgelm.runtime.calibration_windows import CALIBRATION_TOKENS
from edgelm.runtime.commands import options


def calibrate(
    model: options.Model,
    out: Annotated[Path, typer.Argument(help="The new file, a GGUF as llama-imatrix writes it.")],
    text: Annotated[Path, typer.Option(help="A text file of what the model will read and write.")],
    tokens: Annotated[int, typer.Option(help="How many tokens of it are used.", min=1)] = CALIBRATION_TOKENS,
    outer: Annotated[bool, typer.Option("--outer", help="Keep the inputs' outer products too, for GPTQ.")] = False,
    threads: options.Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Measure on a text which inputs of which layers matter, for `edgelm quantize --imatrix` and llama.cpp's llama-quantize."""
    from edgelm.runtime.calibrate import calibrate as calibrate_model
    from edgelm.runtime.commands.loading import locate
    from edgelm.runtime.commands.work_bar import work_bar

    with work_bar() as say:
        report = calibrate_model(locate(model), out, text, n_tokens=tokens, outer=outer, n_threads=threads, overwrite=overwrite, say=say)
    print(f"{report.target}: importances of {report.n_weights} matrices, from {report.n_tokens:,} tokens of {text.name}")
    for note in report.notes:
        print(note)
