"""When an endpoint is asked again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.runtime.router.retry import Backoff, CircuitBreaker, RetryBudget, retry_after_s


@given(st.integers(1, 30))
def test_waiting_is_bounded_and_grows(n_failed: int) -> None:
    backoff = Backoff(first_s=0.5, most_s=8.0)
    assert 0 <= backoff.wait_s(n_failed, None) <= min(8.0, 0.5 * 2 ** (n_failed - 1))


@given(st.integers(1, 5), st.floats(0, 100))
def test_an_endpoint_is_never_asked_sooner_than_it_wants(n_failed: int, wanted: float) -> None:
    assert Backoff().wait_s(n_failed, wanted) >= wanted


def test_waits_differ_so_that_clients_do_not_come_together() -> None:
    assert len({Backoff().wait_s(3, None) for _ in range(20)}) > 1


def test_retries_are_a_share_of_the_requests() -> None:
    budget, n_retries = RetryBudget(share=0.2, reserve=5), 0
    for _ in range(1000):
        budget.earn()
        while budget.spend():
            n_retries += 1
    assert n_retries == pytest.approx(1000 * 0.2 + 5, abs=1)


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_try() -> None:
    now = 0.0
    breaker = CircuitBreaker(most_failures=3, rest_s=30, most_rest_s=100, clock=lambda: now)
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()
    for _ in range(2):
        breaker.failed()
    assert breaker.rest_s() == 0  # not three in a row
    breaker.failed()
    assert breaker.rest_s() == 30
    now = 31.0
    assert [breaker.rest_s() > 0 for _ in range(3)] == [False, True, True]  # one tries
    breaker.failed()
    assert breaker.rest_s() == 60  # twice as long
    now = 92.0
    assert breaker.rest_s() == 0
    breaker.failed()
    assert breaker.rest_s() == 100  # bounded
    now = 193.0
    assert breaker.rest_s() == 0
    breaker.succeeded()
    assert breaker.rest_s() == 0
    for _ in range(3):
        breaker.failed()
    assert breaker.rest_s() == 30  # from the beginning


def test_retry_after_as_seconds_and_as_a_date() -> None:
    assert retry_after_s("7") == 7
    when = datetime.now(UTC) + timedelta(seconds=90)
    assert retry_after_s(format_datetime(when, usegmt=True)) == pytest.approx(90, abs=3)
    assert retry_after_s(format_datetime(when - timedelta(hours=1), usegmt=True)) == 0


BEYOND = "Mon, 01 Jan 2024 00:00:00 +99999999999999999"


@pytest.mark.parametrize("header", [None, "", "soon", "-3", "1e9", "9" * 40, "٣", "Wed, 99 Foo 2026", BEYOND])
def test_a_retry_after_that_makes_no_sense_says_nothing(header: str | None) -> None:
    assert retry_after_s(header) is None
