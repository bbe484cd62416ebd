"""API keys of endpoints: read when they are needed, and kept nowhere."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from edgelm.errors import CloudError, MissingPackageError
from edgelm.runtime.settings import variable as setting

_KEYRING_USER = "edgelm"

Key = Callable[[], str | None]


def key_of(variable: str | None, service: str | None) -> Key:
    """What gives an endpoint's key.

    Args:
        variable: an environment variable.
        service: its name in the system's keyring.

    Raises:
        MissingPackageError: what reads the keyring is not installed.
    """
    if variable is not None:
        return lambda: _sound(setting(variable), f"the environment variable {variable}")
    if service is not None:
        if find_spec("keyring") is None:  # said now, and not by the first request
            raise MissingPackageError("keys in the system's keyring need the package keyring; pip install 'edgelm[route]'")
        return lambda: _sound(_from_keyring(service), f"the keyring's entry {service!r} for {_KEYRING_USER!r}")
    return lambda: None


def _from_keyring(service: str) -> str | None:
    import keyring
    from keyring.errors import KeyringError

    try:
        return keyring.get_password(service, _KEYRING_USER)
    except KeyringError as error:
        raise CloudError(f"the system's keyring gives no key ({type(error).__name__})", "no key", may_be_billed=False) from None


def _sound(key: str | None, place: str) -> str:
    key = (key or "").strip()
    if not key:
        raise CloudError(f"{place} has no API key; set it", "no key", may_be_billed=False)
    if not (key.isascii() and key.isprintable()):
        raise CloudError(f"{place} holds characters that no key has; copy the key again", "no key", may_be_billed=False)
    return key
