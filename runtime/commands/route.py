"""`edgelm route`: when a cloud is asked, and what it was sent."""

from __future__ import annotations

import typer

from edgelm.runtime.commands.route_calibrate import calibrate
from edgelm.runtime.commands.route_check import check
from edgelm.runtime.commands.route_eval import evaluate
from edgelm.runtime.commands.route_log import log, verify
from edgelm.runtime.commands.route_spent import spent
from edgelm.runtime.commands.route_train import train

route = typer.Typer(name="route", help="Decide when a cloud is asked, and see what has left this device.", no_args_is_help=True)
for name, command in (
    ("check", check),
    ("train", train),
    ("calibrate", calibrate),
    ("eval", evaluate),
    ("spent", spent),
    ("log", log),
    ("verify", verify),
):
    route.command(name)(command)
