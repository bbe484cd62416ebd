"""`edgelm route`: commands of the router."""

from __future__ import annotations

import typer

from edgelm.runtime.commands.route_calibrate import calibrate

app = typer.Typer(name="route", help="Answer on this device, and know when to ask a cloud.", no_args_is_help=True)
app.command()(calibrate)
