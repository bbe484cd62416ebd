"""TP-Link Kasa plugs with the older local protocol: `kasa://host[:port][?channel=N]`.

TCP port 9999, each message with its length in 4 bytes (big endian), and each byte XORed with the one sent before it, the first with 171;
softScheck's "Reverse Engineering the TP-Link HS110" describes it. Newer firmware (KLAP, and all Tapo plugs) does not speak it.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

from edgelm.bench.power.base import Reading
from edgelm.bench.power.plug import TIMEOUT_S, Address, field_of, parse_address, used_watts
from edgelm.bench.record import MeterInfo
from edgelm.errors import MeterError

_FIRST_KEY = 171
_MAX_BYTES = 1 << 20
_PERIOD_S = 1.0
_KLAP = (
    "newer firmware (KLAP) and Tapo plugs are closed to edgebench: log them with python-kasa"
    " (`kasa --host HOST energy`) into a CSV file, and take it in with `edgebench power import`"
)


class KasaMeter:
    """One socket of a plug or strip."""

    wrap_j = None

    def __init__(self, address: Address) -> None:
        self._address = address
        info = self._ask({"system": {"get_sysinfo": {}}}, "system", "get_sysinfo")
        self._child = _child(info, address)
        domain = f"wall socket of Kasa {info.get('model', 'plug')}, channel {address.channel}"
        self.info = MeterInfo(address.text, domain, "wall", "measured", "power", _PERIOD_S, source="TP-Link states no accuracy")

    def read(self) -> Reading:
        request: dict[str, Any] = {"emeter": {"get_realtime": {}}}
        if self._child:
            request["context"] = {"child_ids": [self._child]}
        now = self._ask(request, "emeter", "get_realtime")
        where = self._address.text
        # older hardware says power in W, newer power_mw in mW
        return Reading(used_watts(field_of(now, "power_mw", where) / 1e3 if "power_mw" in now else field_of(now, "power", where), where))

    def close(self) -> None:
        pass  # each question has its own connection: the plugs close it after the answer

    def _ask(self, request: dict[str, Any], section: str, command: str) -> dict[str, Any]:
        where = self._address.text
        try:
            answer = json.loads(decrypt(self._exchange(encrypt(json.dumps(request, separators=(",", ":")).encode()))))
            part = answer[section][command] if command in answer[section] else answer[section]
            code = part.get("err_code", 0)
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            raise MeterError(f"{where} does not answer as a Kasa plug does; is it one? {_KLAP}") from error
        if code:
            raise MeterError(f"{where} refuses {command} ({part.get('err_msg', f'error {code}')}); a plug without a power meter?")
        return dict(part)

    def _exchange(self, message: bytes) -> bytes:
        address = self._address
        deadline = time.monotonic() + TIMEOUT_S
        try:
            with socket.create_connection((address.host, address.port), TIMEOUT_S) as connection:
                connection.sendall(struct.pack(">I", len(message)) + message)
                (length,) = struct.unpack(">I", _receive(connection, 4, deadline))
                if length > _MAX_BYTES:
                    raise MeterError(f"{address.text} announces {length} bytes, which no Kasa plug sends; is it one?")
                return _receive(connection, length, deadline)
        except TimeoutError as error:
            raise MeterError(f"{address.text} did not answer within {TIMEOUT_S:g} s; is it on, and on this network?") from error
        except ConnectionRefusedError as error:
            raise MeterError(f"{address.text} takes no connection on port {address.port}; {_KLAP}") from error
        except OSError as error:
            raise MeterError(f"{address.text} cannot be asked ({error.strerror or error}); is it on this network?") from error


def open_kasa(text: str) -> KasaMeter:
    """Open the plug at an address, and read it once.

    Raises:
        MeterError: it does not answer, speaks another protocol, or does not measure.
    """
    meter = KasaMeter(parse_address(text, "kasa", 9999))
    meter.read()
    return meter


def encrypt(plain: bytes) -> bytes:
    """The protocol's XOR with the byte sent before."""
    key, sent = _FIRST_KEY, bytearray()
    for byte in plain:
        key ^= byte
        sent.append(key)
    return bytes(sent)


def decrypt(received: bytes) -> bytes:
    """The inverse of encrypt."""
    return bytes(byte ^ key for byte, key in zip(received, bytes([_FIRST_KEY]) + received, strict=False))


def _receive(connection: socket.socket, n_bytes: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < n_bytes:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        piece = connection.recv(n_bytes - len(received))
        if not piece:
            raise ConnectionError("it hung up in the middle of its answer")
        received += piece
    return bytes(received)


def _child(info: dict[str, Any], address: Address) -> str | None:
    """A strip's sockets have names of their own."""
    children = info.get("children") or []
    if not isinstance(children, list) or (not children and address.channel):
        raise MeterError(f"{address.text} has one channel; leave channel={address.channel} away")
    if not children:
        return None
    if address.channel >= len(children):
        raise MeterError(f"{address.text} has {len(children)} channels, counted from 0")
    name = children[address.channel].get("id") if isinstance(children[address.channel], dict) else None
    if not isinstance(name, str):
        raise MeterError(f"{address.text} does not name its channel {address.channel}")
    device = str(info.get("deviceId", ""))
    return name if name.startswith(device) else device + name
