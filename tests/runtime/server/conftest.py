"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from served import MakeServed, Served

from edgelm.backends.scripted import Script


@pytest.fixture
def make_served() -> Iterator[MakeServed]:
    """Starts a server; every sequence must have been freed when the test is over."""
    servers: list[Served] = []

    def make(script: Script, *args: Any, **kwargs: Any) -> Served:
        servers.append(Served(script, *args, **kwargs))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
