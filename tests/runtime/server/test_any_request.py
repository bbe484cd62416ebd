"""Requests that nobody would think of, made from the OpenAPI document: none of them may hurt the server."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import schemathesis
from byte_model import says
from hypothesis import HealthCheck, given, settings
from served import Served

from edgelm.runtime.scheduler import Limits
from edgelm.runtime.server.access import Access


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    server = Served(says("x"), Access(), Limits(), 128)
    yield server
    server.close()


def test_no_request_breaks_the_server(served: Served) -> None:
    api = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            response = case.call(timeout=30)
            assert response.status_code < 500, response.text
            assert response.status_code != 422
            if response.status_code >= 400:
                assert set(response.json()["error"]) >= {"message", "type", "param", "code"}

        ask()


def test_it_is_well_afterwards(served: Served) -> None:
    assert served.chat().status_code == 200
    end = time.monotonic() + 5
    while served.model.scheduler.n_active:
        assert time.monotonic() < end
        time.sleep(0.01)
