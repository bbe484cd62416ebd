"""The `edgelm` command: its subcommands, and how it ends.

Exit codes: 0 done, 1 an error edgelm can explain, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

import edgelm
from edgelm.errors import EdgeLMError
from edgelm.runtime.commands.calibrate import calibrate
from edgelm.runtime.commands.chat import chat
from edgelm.runtime.commands.doctor import doctor
from edgelm.runtime.commands.export import export
from edgelm.runtime.commands.inspect import inspect
from edgelm.runtime.commands.models import models, pull
from edgelm.runtime.commands.quantize import quantize
from edgelm.runtime.commands.route import app as route
from edgelm.runtime.commands.run import run
from edgelm.runtime.commands.serve import serve

app = typer.Typer(
    name="edgelm",
    help="Run quantized language models on this device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (run, chat, serve, pull, models, inspect, quantize, calibrate, export, doctor):
    app.command()(command)
app.add_typer(route)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(edgelm.__version__)
        raise typer.Exit


@app.callback()
def version_option(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)] = False,
) -> None:
    """Run quantized language models on this device."""


def main() -> None:
    """Run the command line of this process, and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character shows another, never a traceback
            stream.reconfigure(errors="replace")
    try:
        app()  # reports wrong usage, an interrupt and a closed pipe itself, and exits
    except EdgeLMError as error:
        sys.exit(f"edgelm: {error}")
    except MemoryError as error:
        sys.exit(f"edgelm: out of memory ({error}); close other programs, or use a smaller model, --ctx or --threads")
    except OSError as error:  # such as a full disk below stdout
        sys.exit(f"edgelm: the system refused ({error}); make room or correct permissions, then try again")
