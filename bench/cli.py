"""The `edgebench` command: speed, watts, quality and load.

Exit codes: 0 done, 1 an error edgelm can explain, 2 wrong usage, 3 a gate was not kept, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer
from rich.console import Console

from edgelm.bench.commands import history, power
from edgelm.bench.commands.compare import compare
from edgelm.bench.commands.divergence import divergence
from edgelm.bench.commands.load import load
from edgelm.bench.commands.plan import plan
from edgelm.bench.commands.quality import quality
from edgelm.bench.commands.quantizers import quantizers
from edgelm.bench.commands.report import report
from edgelm.bench.commands.run import run
from edgelm.bench.commands.shape import shape
from edgelm.bench.commands.sustain import sustain
from edgelm.errors import EdgeLMError

app = typer.Typer(
    name="edgebench",
    help="Measure engines and devices: tokens per second, watts, joules per token, and how far from the machine's limit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_COMMANDS: tuple[Callable[..., None], ...] = (run, load, sustain, plan, quality, quantizers, compare, report, shape, divergence)
for command in _COMMANDS:
    app.command()(command)
app.add_typer(history.app, name="history")
app.add_typer(power.app, name="power")


def main() -> None:
    """Run the command line of this process, and end the process with its exit code."""
    try:
        app()
    except EdgeLMError as error:
        Console(stderr=True).print(f"edgebench: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
