"""Which execution providers are here, why others are not, and how one is made ready for a session."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from edgelm.backends.onnx.provider_table import PROVIDERS, Provider, find_provider
from edgelm.errors import BackendUnavailableError

_PLATFORMS = {"linux": "Linux", "darwin": "macOS", "win32": "Windows", "android": "Android"}


@dataclass(frozen=True)
class ProviderState:
    """One provider on this machine.

    Attributes:
        provider: its row.
        version: of the wheel that brings it; empty where there is none.
        devices: what it computes on, as it says itself; empty for providers that do not say.
        reason: why it cannot be used and what to do; None where it can.
    """

    provider: Provider
    version: str
    devices: tuple[str, ...]
    reason: str | None


def survey() -> list[ProviderState]:
    """Every provider that edgelm knows. Libraries of plug-ins are loaded for it."""
    return [state(name) for name in PROVIDERS]


def state(name: str) -> ProviderState:
    """What can be said of one provider.

    Raises:
        InvalidRequestError: no row has this name.
    """
    row = find_provider(name)
    reason = unavailable_reason(name)
    if reason is not None:
        return ProviderState(row, "", (), reason)
    return ProviderState(row, _version(row), tuple(_device_words(device) for device in devices(row)), None)


def unavailable_reason(name: str) -> str | None:
    """Why the provider cannot be used here and what to do about it, or None where it can.

    The library of a plug-in is loaded and registered with ONNX Runtime, once per process; later calls find it there.

    Raises:
        InvalidRequestError: no row has this name.
    """
    row = find_provider(name)
    if _platform() not in row.platforms:
        names = " and ".join(_PLATFORMS[name] for name in row.platforms)
        return f"only {names} can have it, and this is {_PLATFORMS.get(_platform(), _platform())}; {row.elsewhere}"
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed; pip install 'edgelm[onnx]'"
    import onnxruntime

    if row.ort_name in onnxruntime.get_available_providers():
        return None
    if not row.plugin:
        return f"ONNX Runtime {onnxruntime.__version__} was built without it; {row.advice}"
    if find_spec(row.plugin) is None:
        return f"{row.package} is not installed; {row.advice}"
    return _register(row)


def require_provider(name: str) -> Provider:
    """The row of a provider that can be used.

    Raises:
        InvalidRequestError: no row has this name.
        BackendUnavailableError: it cannot be used here.
    """
    reason = unavailable_reason(name)
    if reason is not None:
        raise BackendUnavailableError(f"the execution provider {name!r} cannot be used: {reason}")
    return find_provider(name)


def devices(row: Provider) -> list[Any]:
    """The devices (onnxruntime.OrtEpDevice) that the provider offers; none for providers built in without a list of devices."""
    import onnxruntime

    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == row.ort_name]


def _register(row: Provider) -> str | None:
    """Register a plug-in's library; why it cannot be, or None.

    ONNX Runtime keeps the register for the whole process and refuses a second entry of one name, so that threads need no lock here.
    """
    import onnxruntime

    again = f"reinstall it: pip install --force-reinstall {row.package}"
    try:
        library = import_module(row.plugin).get_library_path()
    except (ImportError, OSError, RuntimeError) as error:
        return f"{row.package} is installed but cannot be imported ({error}); {again}"
    try:
        onnxruntime.register_execution_provider_library(row.ort_name, library)
    except ort_errors() as error:
        if "already registered" not in str(error):
            return f"the library of {row.package} cannot be loaded ({ort_message(error)}); {again}, in a version that fits onnxruntime"
    return None if devices(row) else f"{row.package} finds no device on this machine that it can use"


def ort_errors() -> tuple[type[Exception], ...]:
    """Every error that ONNX Runtime raises; its own have no base class in common."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError, MemoryError)


def ort_message(error: BaseException) -> str:
    """The text of an error of ONNX Runtime, without its prefix of codes."""
    text = " ".join(str(error).split())
    return text.rpartition("[ONNXRuntimeError]")[2].lstrip(" :0123456789").partition(" : ")[2] if "[ONNXRuntimeError]" in text else text


def _version(row: Provider) -> str:
    for package in (row.package, "onnxruntime"):
        try:
            return f"{package} {version(package)}" if package else ""
        except PackageNotFoundError:
            continue
    return ""


def _device_words(device: Any) -> str:
    kind = device.device.type.name
    return f"{kind} of {device.device.vendor}" if device.device.vendor else kind


def _platform() -> str:
    """sys.platform, and "android" for the Pythons of Android that call themselves linux."""
    return "android" if hasattr(sys, "getandroidapilevel") else sys.platform
