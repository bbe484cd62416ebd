"""An OpenAI-compatible endpoint elsewhere: one request with all that may go wrong with it.

It is not a ChatModel: it cannot be asked without a permit.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import monotonic

from edgelm.errors import CloudError
from edgelm.runtime.chat_model import ChatRequest, Event
from edgelm.runtime.privacy import Level
from edgelm.runtime.router.cloud_request import answer_tokens, body_of
from edgelm.runtime.router.egress import Address, Egress, Limits
from edgelm.runtime.router.ledger import Account, Ledger, Purpose
from edgelm.runtime.router.policy import Permit, Policy
from edgelm.runtime.router.retry import Backoff, CircuitBreaker, RetryBudget

_COMES_AGAIN = frozenset({429, 503, 529})  # statuses of an endpoint that has done nothing yet, and may later
_OF_THE_REQUEST = frozenset({400, 413, 415, 422})  # that say nothing about how the endpoint is


@dataclass(frozen=True)
class Endpoint:
    """Which endpoint, and how it is asked.

    Attributes:
        address: of its chat completions.
        model: its name there.
        most_tokens: of an answer; a request can only ask for fewer.
        timeout_s: for a whole answer, all attempts together.
        left_out: see body_of.
        currency: of its prices, as "USD".
        limits: of one attempt.
        backoff: between attempts.
    """

    address: Address
    model: str
    most_tokens: int = 1024
    timeout_s: float = 60.0
    left_out: Sequence[str] = ()
    currency: str = "USD"
    limits: Limits = field(default_factory=Limits)
    backoff: Backoff = field(default_factory=Backoff)


class CloudEndpoint:
    """Asks an endpoint, within a budget, and writes down what was sent.

    Args:
        ledger: where each attempt is counted, and written down, before it is made.
    """

    def __init__(self, endpoint: Endpoint, policy: Policy, ledger: Ledger) -> None:
        self.endpoint = endpoint
        self._egress = Egress(endpoint.address, policy, endpoint.limits)
        self._ledger = ledger
        self._retries = RetryBudget()
        self._breaker = CircuitBreaker()

    def body(self, request: ChatRequest) -> bytes:
        """What would be sent."""
        return body_of(request, self.endpoint.model, self.endpoint.most_tokens, self.endpoint.left_out)

    async def answer(
        self, permit: Permit, request: ChatRequest, body: bytes, purpose: Purpose, account: Account, timeout_s: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """The events of its answer: text and calls, and a Finish. It must be closed, whether or not anybody took one (`aclosing`).

        Args:
            body: of the request, as the permit has it.
            account: is filled in.
            timeout_s: where less time is left than the endpoint may take.

        Raises:
            CloudError, BudgetExceededError, EgressRefusedError, RecordError: there is no answer, or it breaks off.
        """
        begin = monotonic()
        endpoint = self.endpoint
        await asyncio.to_thread(endpoint.address.key)  # where there is none, there is nothing to count or to write down
        if timeout_s is not None and timeout_s <= 0.0:
            raise CloudError("there is no time left to ask the endpoint", "timeout", may_be_billed=False)
        deadline = asyncio.get_running_loop().time() + (endpoint.timeout_s if timeout_s is None else min(endpoint.timeout_s, timeout_s))
        n_output = answer_tokens(request.params, endpoint.most_tokens)
        self._retries.earn()
        try:
            for n_failed in itertools.count(1):
                if rest_s := self._breaker.rest_s():
                    raise CloudError(f"{endpoint.address.origin} failed too often, and is left alone for {rest_s:.0f} s", "resting", False)
                try:
                    async with aclosing(self._attempt(permit, body, n_output, purpose, account, deadline)) as events:
                        async for event in events:
                            yield event
                    self._breaker.succeeded()
                    return
                except CloudError as error:
                    if error.status not in _OF_THE_REQUEST:
                        self._breaker.failed()
                    wait_s = endpoint.backoff.wait_s(n_failed, error.retry_after_s)
                    ends = asyncio.get_running_loop().time() + wait_s >= deadline or n_failed >= endpoint.backoff.attempts
                    if ends or not _may_come_again(error) or not self._retries.spend():
                        raise
                await asyncio.sleep(wait_s)
        finally:
            account.seconds = monotonic() - begin

    async def _attempt(
        self, permit: Permit, body: bytes, n_output: int, purpose: Purpose, account: Account, deadline: float
    ) -> AsyncGenerator[Event, None]:
        origin, model = self.endpoint.address.origin, self.endpoint.model
        async with (
            self._ledger.attempt(permit, origin, model, body, n_output, purpose, account) as attempt,
            self._egress.post(permit, body, deadline) as response,
        ):
            attempt.response = response
            async with aclosing(attempt.answer.events(response)) as events:
                async for event in events:
                    yield event

    def prepare(self) -> None:
        """Load what the first request needs; nothing is connected."""
        self._egress.prepare()

    async def kept(self, request: str, level: Level, reason: str) -> None:
        """Write down that a request did not come here, for a rule; errors as of Ledger.kept."""
        await self._ledger.kept(request, self.endpoint.address.origin, level, reason)

    async def close(self) -> None:
        """Close its connections."""
        await self._egress.close()


def _may_come_again(error: CloudError) -> bool:
    """Whether the endpoint has done nothing yet, so that nothing is paid for twice."""
    return error.kind == "refused" or error.status in _COMES_AGAIN
