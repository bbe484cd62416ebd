"""The door lets nothing out without a permit that holds, at every attempt and while it reads."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cloud_server import CloudServer, answers, event, head, status
from routed import LOCAL, Routed

from edgelm.errors import EgressRefusedError
from edgelm.runtime.privacy import Level
from edgelm.runtime.router.egress import Address, Egress
from edgelm.runtime.router.policy import Permit, Policy

BODY = b'{"model": "m", "messages": []}'


def post(cloud: CloudServer, policy: Policy, permit: Permit, body: bytes = BODY) -> bytes:
    """What comes back through the door."""

    async def go() -> bytes:
        loop = asyncio.get_running_loop()
        async with (
            Egress(Address(f"{cloud.url}/chat/completions"), policy) as egress,
            egress.post(permit, body, loop.time() + 5) as response,
        ):
            return b"".join([piece async for piece in response.pieces()])

    return asyncio.run(go())


def permit_of(policy: Policy, cloud: CloudServer, body: bytes = BODY) -> Permit:
    return policy.permit((), f"{cloud.url}/chat/completions", body, redacted=False, has_consent=False)


def test_with_a_permit_the_body_goes_out_as_it_is() -> None:
    with CloudServer() as cloud:
        policy = Policy(Level.ALLOW)
        assert b"from the cloud" in post(cloud, policy, permit_of(policy, cloud))
    assert cloud.received[0].endswith(b"\r\n\r\n" + BODY)


def test_without_one_that_is_good_for_it_nothing_is_even_connected() -> None:
    with CloudServer() as cloud:
        policy = Policy(Level.ALLOW)
        good = permit_of(policy, cloud)
        forged = Permit(good.url, good.body_digest, good.level, good.redacted, good.expires)
        for permit, body in ((forged, BODY), (replace(good, redacted=True), BODY), (good, BODY + b" ")):
            with pytest.raises(EgressRefusedError):
                post(cloud, policy, permit, body)
        assert cloud.n_connections == 0


def test_a_retry_is_not_made_once_the_device_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(send: Any, over: Any) -> None:
        monkeypatch.setenv("EDGELM_OFFLINE", "1")
        status("503 Service Unavailable", Retry_After="0")(send, over)

    with CloudServer(busy, answers("from the cloud")) as cloud:
        routed = Routed(tmp_path, cloud.url)
        heard = routed.ask()
    assert len(cloud.received) == 1
    assert heard.text == LOCAL
    assert "EDGELM_OFFLINE" in (heard.told.fault or "")


def test_reading_ends_once_the_device_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(send: Any, over: Any) -> None:
        send(head() + event({"content": "so far "}))
        monkeypatch.setenv("EDGELM_OFFLINE", "1")
        over.wait(0.1)
        send(event({"content": "and on"}))
        over.wait(5)

    with CloudServer(talk) as cloud:
        heard = Routed(tmp_path, cloud.url).ask()
    assert heard.text == LOCAL
    assert "not allowed any more" in (heard.told.fault or "")
