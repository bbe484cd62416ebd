"""`edgelm route`: who answers, this device or the cloud."""

from __future__ import annotations

import typer

from edgelm.runtime.commands.route_eval import evaluate
from edgelm.runtime.commands.route_train import train

route = typer.Typer(name="route", help="Decide which questions are worth asking a model in the cloud.", no_args_is_help=True)
route.command("train")(train)
route.command("eval")(evaluate)
