"""NVIDIA GPUs by NVML, the driver's library (package nvidia-ml-py): the board with its memory, not the computer it sits in."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from edgelm.bench.power.base import AbsentMeter, Meter, Reading
from edgelm.bench.record import MeterInfo
from edgelm.errors import MeterError

_SOURCE = (
    "NVML's reference states 5% for Fermi and Kepler only, and that power is a mean over 1 s from Ampere on (except GA100);"
    " A100 and H100 sample a part of the time (Yang et al., SC 2024)"
)
_ENERGY_PERIOD_S = 0.1  # new every 20 to 100 ms
_POWER_PERIOD_S = 0.1


class NvmlMeter:
    """One GPU: its energy counter (mJ since the driver was loaded; Volta and later), else its power (mW)."""

    wrap_j = None  # 64 bits of millijoules outlast the driver

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._is_open = True
        self._name = f"nvml:{index}"
        self._call("nvmlInit")
        try:
            self._gpu = self._call("nvmlDeviceGetHandleByIndex", index)
            has_counter = self._has_counter()
            if not has_counter:
                self._call("nvmlDeviceGetPowerUsage", self._gpu)
            model = str(self._call("nvmlDeviceGetName", self._gpu))
        except MeterError:
            self.close()
            raise
        quantity: Literal["energy", "power"] = "energy" if has_counter else "power"
        period_s = _ENERGY_PERIOD_S if has_counter else _POWER_PERIOD_S
        domain = f"{model}: GPU board with its memory, without the computer"
        self.info = MeterInfo(self._name, domain, "component", "measured", quantity, period_s, source=_SOURCE)

    def read(self) -> Reading:
        function = "nvmlDeviceGetTotalEnergyConsumption" if self.info.quantity == "energy" else "nvmlDeviceGetPowerUsage"
        return Reading(self._call(function, self._gpu) / 1e3)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            with suppress(self._nvml.NVMLError):  # nothing is left to be done about it
                self._nvml.nvmlShutdown()

    def _has_counter(self) -> bool:
        try:
            return bool(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) >= 0)
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
            return False
        except self._nvml.NVMLError as error:
            raise MeterError(f"{self._name}: nvmlDeviceGetTotalEnergyConsumption failed ({error})") from error

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError as error:
            raise MeterError(f"{self._name}: {function} failed ({error}); see what nvidia-smi says") from error


def discover_nvml(root: Path = Path("/")) -> list[Meter | AbsentMeter]:
    """A meter of each GPU."""
    try:
        import pynvml
    except ImportError:
        advice = "pip install 'edgelm[bench]'" if (root / "proc/driver/nvidia").exists() else ""
        return [AbsentMeter("nvml", "nvidia-ml-py is not installed", advice)]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        advice = "" if isinstance(error, pynvml.NVMLError_LibraryNotFound) else "nvidia-smi must work first"
        return [AbsentMeter("nvml", f"no NVIDIA driver answers ({error})", advice)]
    try:
        meters = [_open(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return [AbsentMeter("nvml", f"the NVIDIA driver does not count its GPUs ({error})", "see what nvidia-smi says")]
    finally:
        pynvml.nvmlShutdown()
    return meters or [AbsentMeter("nvml", "the NVIDIA driver knows no GPU")]


def _open(nvml: Any, index: int) -> Meter | AbsentMeter:
    try:
        return NvmlMeter(nvml, index)
    except MeterError as error:
        return AbsentMeter(f"nvml:{index}", str(error), "some laptop, virtual and partitioned GPUs do not measure power")
