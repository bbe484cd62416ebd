"""`edgelm route`: what the router does, and what it has let out."""

from __future__ import annotations

import typer

from edgelm.runtime.commands.route_log import log, verify

route = typer.Typer(name="route", help="See what has left this device.", no_args_is_help=True)
for command in (log, verify):
    route.command()(command)
