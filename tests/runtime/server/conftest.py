"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from served import MakeServed, Served

from edgelm.backends.scripted import Script
from edgelm.runtime.scheduler import Limits
from edgelm.runtime.server.access import Access


@pytest.fixture
def make_served() -> Iterator[MakeServed]:
    """Starts a server; every sequence must have been freed when the test is over."""
    servers: list[Served] = []

    def make(
        script: Script,
        access: Access = Access(),  # noqa: B008
        limits: Limits = Limits(),  # noqa: B008
        n_ctx: int = 512,
        names: Sequence[str] = ("scripted",),
    ) -> Served:
        servers.append(Served(script, access, limits, n_ctx, names))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
