"""Android phones by their battery: on the phone itself in Termux, or from a computer by adb, `adb://[SERIAL][?unit=mA]`.

Android documents BATTERY_PROPERTY_CURRENT_NOW in microamperes, negative while discharging (developer.android.com, BatteryManager). Vendors
do not keep to it: some give milliamperes, some turn the sign round. So the direction is taken from the status alone, and what would
be implausible in microamperes is refused until the user says the unit. A phone on a cable is charging, and shows nothing: use adb over the
network.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from edgelm.bench.power.base import AbsentMeter, Meter, Reading
from edgelm.bench.power.battery import check_watts
from edgelm.bench.record import MeterInfo
from edgelm.errors import MeterError

_SOURCE = "the phone's fuel gauge; no maker states its accuracy, and some renew it only every few seconds"
_PERIOD_S = 1.0
_TIMEOUT_S = 5.0
_DISCHARGING = "3"  # BatteryManager.BATTERY_STATUS_DISCHARGING
_STATES = {"1": "unknown", "2": "charging", "4": "not charging", "5": "full"}
_UNITS_A = {"uA": 1e-6, "mA": 1e-3}
_PULL = "pull every cable and charger; adb works over the network, too (adb tcpip 5555, adb connect HOST)"


@dataclass(frozen=True)
class BatteryState:
    """What a phone says of its battery now.

    Attributes:
        fed_by: what is plugged in, "" for nothing.
        current: in the unit that the phone uses; either sign.
    """

    status: str
    fed_by: str
    volts: float
    current: float


class AndroidMeter:
    """A phone's battery."""

    wrap_j = None

    def __init__(self, name: str, ask: Callable[[], BatteryState], amperes_per_unit: float) -> None:
        self.info = MeterInfo(name, "whole phone, from its battery", "device", "measured", "power", _PERIOD_S, source=_SOURCE)
        self._ask = ask
        self._amperes_per_unit = amperes_per_unit

    def read(self) -> Reading:
        state = self._ask()
        name = self.info.name
        if state.fed_by or state.status != "discharging":
            fed = f"fed by {state.fed_by}" if state.fed_by else state.status
            raise MeterError(f"{name}: the phone is {fed}, so that its battery shows nothing; {_PULL}")
        if not 2.0 <= state.volts <= 15.0:
            raise MeterError(f"{name}: a battery voltage of {state.volts:g} V is none of a phone; this phone uses another unit")
        watts = abs(state.current) * self._amperes_per_unit * state.volts
        try:
            check_watts(watts, f"{name}: current {state.current:g} in the assumed unit")
        except MeterError as error:
            hint = "an address with ?unit=mA or ?unit=uA says which" if name.startswith("adb") else "compare with a meter outside"
            raise MeterError(f"{error}; vendors differ in the unit of the current: {hint}") from error
        return Reading(watts)

    def close(self) -> None:
        pass


def discover_android(root: Path = Path("/")) -> list[Meter | AbsentMeter]:
    """The phone that this runs on. Where /sys shows the battery, the meter `battery` reads it, and this one is not needed."""
    if not (root / "system/build.prop").exists():
        return [AbsentMeter("android", "this is no Android; a phone elsewhere is given by its address, adb://SERIAL")]
    if any((folder / "voltage_now").exists() for folder in (root / "sys/class/power_supply").glob("*")):
        return [AbsentMeter("android", "/sys/class/power_supply can be read; see the meter battery")]
    command = shutil.which("termux-battery-status")
    advice = "install the app Termux:API and its package: pkg install termux-api"
    if command is None:
        return [AbsentMeter("android", "apps may not read /sys/class/power_supply here, and termux-battery-status is not there", advice)]
    meter = AndroidMeter("android", lambda: _termux_state(command), _UNITS_A["uA"])
    try:
        meter.read()
    except MeterError as error:
        return [AbsentMeter("android", str(error), _PULL if _PULL not in str(error) else "")]
    return [meter]


def open_adb(text: str) -> AndroidMeter:
    """Open a phone reached by adb, and read it once.

    Raises:
        MeterError: there is no adb or no such phone, it is charging, or its figures make no sense.
    """
    serial, unit = _adb_address(text)
    command = shutil.which("adb")
    if command is None:
        raise MeterError("adb is not there; install Android's platform tools, and have it in PATH")
    shell = [command, *(["-s", serial] if serial else []), "shell"]
    meter = AndroidMeter(text, lambda: _adb_state(shell), _UNITS_A[unit])
    meter.read()
    return meter


def _adb_address(text: str) -> tuple[str, str]:
    """Serial number, or host:port, and unit."""
    parts = urlsplit(text)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unit = options.pop("unit", "uA")
    if parts.scheme != "adb" or parts.path not in ("", "/") or options or unit not in _UNITS_A:
        raise MeterError(f"{text} is no address of a phone; write adb://SERIAL, adb:// for the only phone, or add ?unit=mA")
    if not re.fullmatch(r"[\w.:-]*", parts.netloc) or parts.netloc.startswith("-"):
        raise MeterError(f"{text} names no phone; see `adb devices` for the serial numbers")
    return parts.netloc, unit


def _termux_state(command: str) -> BatteryState:
    """`termux-battery-status`: voltage in mV; current in uA, below 1000 taken for mA by Termux itself."""
    text = _run([command])
    try:
        answer = json.loads(text)
        status, plugged = str(answer["status"]).lower().replace("_", " "), str(answer["plugged"])
        volts, current = float(answer["voltage"]) / 1e3, float(answer["current"])
    except KeyError as error:
        raise MeterError(
            f"termux-battery-status tells no {error.args[0]}; this phone's fuel gauge or an old Termux:API lacks it"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise MeterError(f"termux-battery-status wrote {text[:40]!r}; is the app Termux:API installed?") from error
    return BatteryState(status, "" if plugged == "UNPLUGGED" else plugged, volts, current)


def _adb_state(shell: list[str]) -> BatteryState:
    """`dumpsys battery` for the state and mV; the current by the battery service (Android 14 and later), else by /sys."""
    dump = _run([*shell, "dumpsys battery"])
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in dump.splitlines())}
    if "UPDATES STOPPED" in dump:
        raise MeterError("the phone's battery service was stopped by `dumpsys battery set`; give `adb shell dumpsys battery reset`")
    fed_by = ", ".join(key.removesuffix(" powered") for key, value in fields.items() if key.endswith(" powered") and value == "true")
    status = "discharging" if fields.get("status") == _DISCHARGING else _STATES.get(fields.get("status", ""), "in no state it names")
    try:
        volts = float(fields["voltage"]) / 1e3
    except (KeyError, ValueError) as error:
        raise MeterError(f"adb's `dumpsys battery` tells no voltage: {dump[:60]!r}") from error
    if fed_by or status != "discharging":
        return BatteryState(status, fed_by, volts, math.nan)
    return BatteryState(status, fed_by, volts, _adb_current(shell))


def _adb_current(shell: list[str]) -> float:
    for question in ("cmd battery get -f current_now", "cat /sys/class/power_supply/battery/current_now"):
        answer = _run([*shell, question], may_fail=True).strip()
        if re.fullmatch(r"-?\d+", answer):
            return float(answer)
    raise MeterError(
        "the phone does not tell its battery's current, neither by `cmd battery` (Android 14) nor by /sys; use a meter outside"
    )


def _run(command: list[str], may_fail: bool = False) -> str:
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise MeterError(f"{name} did not answer within {_TIMEOUT_S:g} s; is the phone awake and connected?") from error
    except OSError as error:
        raise MeterError(f"{name} cannot be started ({error.strerror or error})") from error
    if done.returncode and not may_fail:
        said = done.stderr.decode(errors="replace").strip()[:200] or f"exit code {done.returncode}"
        raise MeterError(f"{name} failed: {said}")
    return done.stdout.decode(errors="replace")
