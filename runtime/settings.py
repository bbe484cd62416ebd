"""What the environment says, read in one place (EDGELM_HOST and EDGELM_PORT are defaults of options, which the command line reads).

EDGELM_HOME    folder for everything edgelm stores; where it is not set, the user's cache folder for what can be fetched or made again
               (models, compiled kernels), and the user's state folder for what cannot (the log of what left the device, what was spent)
EDGELM_API_KEY a key that opens the local server
EDGELM_OFFLINE 1 lets nothing leave this device, whatever else allows it: no cloud endpoint is asked, and no model pulled
HF_ENDPOINT    the Hugging Face hub, or a mirror of it
HF_TOKEN       access token for gated models on the hub
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgelm.errors import InvalidRequestError


@dataclass(frozen=True)
class Settings:
    """Settings of one process.

    Attributes:
        home: absolute folder of what edgelm stores and can fetch or make again.
        hub_endpoint: base address of the Hugging Face hub.
        hub_token: access token for the hub, never shown.
        api_key: opens the local server; never shown.
        state_folder: absolute folder of what cannot be made again; None for one in home.
    """

    home: Path
    hub_endpoint: str = "https://huggingface.co"
    hub_token: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    state_folder: Path | None = None

    @property
    def models(self) -> Path:
        """Folder of the models that were pulled."""
        return self.home / "models"

    @property
    def state(self) -> Path:
        """Folder of what must outlive a cache that is emptied."""
        return self.state_folder or self.home / "state"

    @property
    def egress_log(self) -> Path:
        """The log of what left the device."""
        return self.state / "egress.jsonl"

    @property
    def budget(self) -> Path:
        """What was spent on cloud endpoints."""
        return self.state / "budget.sqlite"


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment variables listed above.

    Raises:
        InvalidRequestError: a variable has a value that makes no sense.
    """
    env = os.environ if environment is None else environment
    endpoint = env.get("HF_ENDPOINT", "").rstrip("/") or Settings.hub_endpoint
    if not endpoint.startswith(("https://", "http://")):
        raise InvalidRequestError(f"HF_ENDPOINT is {endpoint!r}; it must begin with https:// or http://")
    token = env.get("HF_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable()):
        raise InvalidRequestError("HF_TOKEN holds characters that no token has; copy the token again")
    home, state = _folders(env.get("EDGELM_HOME", ""))
    return Settings(home, endpoint, token or None, env.get("EDGELM_API_KEY") or None, state)


def _folders(value: str) -> tuple[Path, Path | None]:
    """Settings.home and Settings.state_folder."""
    if value:
        try:
            return Path(value).expanduser().absolute(), None
        except RuntimeError as error:
            raise InvalidRequestError(f"EDGELM_HOME is {value!r}, a home folder that is not known; write the whole path") from error
    from platformdirs import user_cache_dir, user_state_dir

    return Path(user_cache_dir("edgelm", appauthor=False)), Path(user_state_dir("edgelm", appauthor=False))


def variable(name: str) -> str | None:
    """The value of a variable that a configuration file names, such as the one of an endpoint's key."""
    return os.environ.get(name)


def is_offline(environment: Mapping[str, str] | None = None) -> bool:
    """Whether EDGELM_OFFLINE forbids to reach any other machine. What is neither empty nor a plain no counts as yes."""
    env = os.environ if environment is None else environment
    return env.get("EDGELM_OFFLINE", "").strip().lower() not in ("", "0", "no", "false", "off")
