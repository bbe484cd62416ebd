"""From `--route FILE` to routers."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.errors import MissingPackageError
from edgelm.runtime.settings import read_settings

if TYPE_CHECKING:
    from edgelm.runtime.local_model import LocalModel
    from edgelm.runtime.router.asking import AskPerson
    from edgelm.runtime.router.config import RouteConfig
    from edgelm.runtime.router.deployment import Deployment
    from edgelm.runtime.router.router import Router


def configuration(path: Path) -> RouteConfig:
    """A configuration file.

    Raises:
        InvalidRequestError: it makes no sense.
        MissingPackageError: what reads it is not installed.
    """
    if find_spec("pydantic") is None:
        raise MissingPackageError("the router's configuration needs pydantic, not installed here; pip install 'edgelm[route]'")
    from edgelm.runtime.router.config import read_config

    return read_config(path)


def deployed(path: Path) -> Deployment:
    """What a configuration file sets up; a line on stderr tells what it comes to.

    Raises:
        EdgeLMError: it makes no sense, or needs what is not there.
    """
    config = configuration(path)
    from edgelm.runtime.router.deployment import Deployment

    deployment = Deployment(config)
    level = config.level.name.lower()
    who = "nothing leaves this device" if deployment.cloud is None else f"{deployment.cloud.endpoint.model} at {config.cloud_url}"
    _say(f"Routing by {path}: level {level}, {who}")
    bounds_money = config.budget.money_per_day is not None or config.budget.money_per_month is not None
    if config.cloud is not None and bounds_money and not (config.cloud.price_input or config.cloud.price_output):
        _say("The budget's money bounds nothing: cloud has neither price_input nor price_output")
    return deployment


def router_of(deployment: Deployment, model: LocalModel, path: Path, ask_person: AskPerson | None = None) -> Router:
    """The router before a model, whose file is at a path."""
    from edgelm.runtime.router.trust import trust_of

    after, thinking = deployment.config.after, deployment.config.thinking.mode
    trust, reason = trust_of(path, read_settings().home, after.calibration, after.threshold, thinking != "off")
    if trust is None:
        _say(f"The confidence in {path.name} is not known: {reason}")
    return deployment.router(model, trust, ask_person)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
