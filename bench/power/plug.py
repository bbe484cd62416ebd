"""What plugs on the network have in common: addresses, JSON over HTTP within a time, and watts that a socket in use can show."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

from edgelm.errors import MeterError

TIMEOUT_S = 2.0
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Address:
    """Where a plug is.

    Attributes:
        text: as the user wrote it; names the meter.
        options: what follows the question mark, such as channel=1.
    """

    text: str
    host: str
    port: int
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def channel(self) -> int:
        """Which socket of a plug with several, from 0."""
        word = self.options.get("channel", "0")
        if not word.isdecimal():
            raise MeterError(f"{self.text}: channel is {word!r}; give a whole number from 0")
        return int(word)


def parse_address(text: str, scheme: str, port: int, options: tuple[str, ...] = ("channel",)) -> Address:
    """Read `scheme://host[:port][?option=value]`.

    Raises:
        MeterError: it is no such address.
    """
    example = f"{scheme}://192.168.1.20"
    try:
        parts = urlsplit(text)
        given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        host, found_port = parts.hostname, parts.port
    except ValueError as error:
        raise MeterError(f"{text} is no address of a meter ({error}); write it like {example}") from error
    if parts.scheme != scheme or not host or parts.path not in ("", "/"):
        raise MeterError(f"{text} is no address of a meter; write it like {example}")
    if parts.username or parts.password:
        raise MeterError(
            f"{scheme} meters with a password are not read; switch the password off in the plug's settings for the measurement"
        )
    if unknown := set(given) - set(options):
        raise MeterError(f"{text}: {', '.join(sorted(unknown))} is no option of it; there are: {', '.join(options)}")
    return Address(text, host, found_port or port, given)


class PlugClient:
    """Asks one plug for JSON; keeps its connection."""

    def __init__(self, address: Address) -> None:
        self._address = address
        host = f"[{address.host}]" if ":" in address.host else address.host
        # no proxy: the plug is on this network
        self._http = httpx.Client(base_url=f"http://{host}:{address.port}", timeout=TIMEOUT_S, trust_env=False)

    def get(self, path: str, query: Mapping[str, str | int] | None = None) -> dict[str, Any]:
        """The answer's JSON object.

        Raises:
            MeterError: the plug cannot be reached, is too slow, wants a password, or does not answer with JSON.
        """
        status, body = self._fetch(path, query)
        where = self._address.text
        if status in (401, 403):
            raise MeterError(f"{where} wants a password, which edgebench does not give; switch it off in the plug's settings")
        if status != 200:
            raise MeterError(f"{where} answers {path} with HTTP {status}; is it a plug of that kind, and does it have that channel?")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise MeterError(f"{where} answers {path} with no JSON ({body[:40]!r}); is it a plug of that kind?") from error
        if not isinstance(answer, dict):
            raise MeterError(f"{where} answers {path} with {type(answer).__name__} where an object belongs")
        return answer

    def close(self) -> None:
        self._http.close()

    def _fetch(self, path: str, query: Mapping[str, str | int] | None) -> tuple[int, bytes]:
        deadline = time.monotonic() + TIMEOUT_S
        body = bytearray()
        try:
            with self._http.stream("GET", path, params=query) as response:
                for piece in response.iter_raw():
                    body += piece
                    if time.monotonic() > deadline or len(body) > _MAX_BYTES:  # httpx limits each read, not the whole
                        raise MeterError(f"{self._address.text} does not come to an end with its answer; restart the plug")
        except httpx.TimeoutException as error:
            raise MeterError(f"{self._address.text} did not answer within {TIMEOUT_S:g} s; is it on, and on this network?") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise MeterError(f"{self._address.text} cannot be asked ({error or type(error).__name__}); is it on this network?") from error
        return response.status_code, bytes(body)


def field_of(answer: Mapping[str, Any], name: str, where: str) -> float:
    """A finite number of the answer.

    Raises:
        MeterError: there is none of that name.
    """
    value = answer.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise MeterError(f"{where} shows no {name} ({value!r}); a plug without a power meter, or another channel?")
    return float(value)


def used_watts(watts: float, where: str) -> float:
    """The same watts, if a socket that feeds this computer can show them.

    Raises:
        MeterError: it shows nothing, or less.
    """
    if watts <= 0:
        raise MeterError(f"{where} shows {watts:g} W: this computer is not plugged in there, or takes too little for the plug to see")
    return watts
