"""When to ask an endpoint again, and when to leave it alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic


@dataclass(frozen=True)
class Backoff:
    """How long to wait before the next attempt: a random time below a bound that doubles ("full jitter").

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    Attributes:
        attempts: at most, the first one included.
        first_s, most_s: the bound after the first attempt, and the largest.
    """

    attempts: int = 3
    first_s: float = 0.5
    most_s: float = 8.0

    def wait_s(self, n_failed: int, retry_after_s: float | None) -> float:
        """Seconds to wait after so many failed attempts; never less than the endpoint asked for."""
        jittered = random.uniform(0.0, min(self.most_s, self.first_s * 2.0 ** (n_failed - 1)))
        return jittered if retry_after_s is None else retry_after_s + jittered


class RetryBudget:
    """Retries are a small share of the requests, so that an endpoint in trouble is not asked many times over.

    Args:
        share: of a retry that each request earns.
        reserve: retries that are there at the beginning, and that can be saved up.
    """

    def __init__(self, share: float = 0.2, reserve: float = 5.0) -> None:
        self._share = share
        self._most = reserve
        self._left = reserve

    def earn(self) -> None:
        """A request is made."""
        self._left = min(self._left + self._share, self._most)

    def spend(self) -> bool:
        """Whether a retry may be made; it is counted."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class CircuitBreaker:
    """After failures in a row an endpoint is left alone for a while; then one request tries whether it is back (Nygard, "Release It!").

    Args:
        most_failures: in a row.
        rest_s: seconds for which it is not asked; they double each time it is not back, up to most_rest_s.
    """

    def __init__(
        self, most_failures: int = 5, rest_s: float = 30.0, most_rest_s: float = 600.0, clock: Callable[[], float] = monotonic
    ) -> None:
        self._most_failures = most_failures
        self._first_rest_s = self._rest_s = rest_s
        self._most_rest_s = most_rest_s
        self._clock = clock
        self._n_failures = 0
        self._closed_until = 0.0

    def rest_s(self) -> float:
        """Seconds until it may be asked again; 0 for now. After a rest only the first who asks is told so: that one tries."""
        if self._n_failures < self._most_failures:
            return 0.0
        left = self._closed_until - self._clock()
        if left <= 0.0:
            self._closed_until = self._clock() + self._rest_s
            return 0.0
        return left

    def succeeded(self) -> None:
        """It has answered."""
        self._n_failures = 0
        self._rest_s = self._first_rest_s

    def failed(self) -> None:
        """It has not."""
        self._n_failures += 1
        if self._n_failures >= self._most_failures:
            self._closed_until = self._clock() + self._rest_s
            self._rest_s = min(2 * self._rest_s, self._most_rest_s)


def retry_after_s(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110, 10.2.3); None where there is no sound one."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text) if len(text) < 10 else None
    try:
        when = parsedate_to_datetime(text)
        return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError, TypeError, IndexError):  # what dates beyond all years raise
        return None
