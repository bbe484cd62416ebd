"""Every attempt to reach a cloud, counted and written down: its worst case before it is made, and how it ended after."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

from edgelm.errors import CloudError, EdgeLMError, EgressRefusedError
from edgelm.runtime.privacy import Level
from edgelm.runtime.router.amounts import Usage
from edgelm.runtime.router.budget import Budget, Reservation
from edgelm.runtime.router.cloud_answer import CloudAnswer, CloudUsage
from edgelm.runtime.router.egress import Response
from edgelm.runtime.router.egress_log import EgressLog
from edgelm.runtime.router.egress_record import Ended, Refused, Sent
from edgelm.runtime.router.policy import Permit


@dataclass(frozen=True)
class Purpose:
    """What the log tells of a request.

    Attributes:
        request: its id.
        reason: why the cloud is asked.
        entities: kinds of personal data that were replaced, and how many.
    """

    request: str
    reason: str
    entities: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Attempt:
    """One request to an endpoint.

    Attributes:
        answer: reads what comes.
        response: once there is one.
    """

    answer: CloudAnswer = field(default_factory=CloudAnswer)
    response: Response | None = None


@dataclass
class Account:
    """What an answer took, all attempts together.

    Attributes:
        usage: of the last attempt, as the endpoint told it.
        n_attempts: requests that were made.
        millionths: of the currency; the worst case of what the endpoint did not tell.
        seconds: with all waiting.
    """

    usage: CloudUsage | None = None
    n_attempts: int = 0
    millionths: int = 0
    seconds: float = 0.0


class Ledger:
    """A budget, and a log beside it: nothing is sent that the budget does not allow, or of which the log could not be written."""

    def __init__(self, budget: Budget, log: EgressLog) -> None:
        self._budget = budget
        self._log = log

    async def kept(self, request: str, origin: str, level: Level, reason: str) -> None:
        """Write down that a request was kept here, though the cloud was to be asked.

        Args:
            reason: which rule kept it, without any of its text.

        Raises:
            RecordError, BusyError: it could not be written.
        """
        await asyncio.to_thread(self._log.append, Refused(request, origin, level.name.lower(), reason))

    @asynccontextmanager
    async def attempt(
        self, permit: Permit, origin: str, model: str, body: bytes, n_output: int, purpose: Purpose, account: Account
    ) -> AsyncIterator[Attempt]:
        """Within it, the attempt is made; how it ends is told by how it is left.

        Args:
            n_output: tokens of the answer, at most.

        Raises:
            BudgetExceededError, RecordError, BusyError: it must not be made.
        """
        # a token is at least a byte of the body, whatever the tokenizer; what JSON puts around messages makes up for the marks between them
        reservation = await asyncio.to_thread(self._budget.reserve, len(body), n_output)
        account.n_attempts += 1
        worst, level = reservation.worst, permit.level.name.lower()
        sent = Sent(
            purpose.request, origin, model, level, purpose.reason, account.n_attempts, body, purpose.entities, worst.tokens, worst.money
        )
        try:
            await asyncio.to_thread(self._log.append, sent)
        except EdgeLMError:
            await asyncio.to_thread(self._budget.release, reservation)
            raise
        attempt, begin, outcome, error = Attempt(), monotonic(), "left", None
        try:
            yield attempt
            outcome = "answered"
        except CloudError as problem:
            outcome, error = problem.kind, problem
            raise
        except EgressRefusedError:
            outcome = "stopped"
            raise
        finally:  # also of an attempt that nobody waits for any more; were this cut short, the worst case would stay counted
            settled = await asyncio.shield(asyncio.to_thread(self._settle, reservation, attempt, error))
            account.usage = attempt.answer.usage
            account.millionths += (settled or worst).millionths
            response = attempt.response
            digest, n_bytes = (hashlib.sha256(), 0) if response is None else (response.digest, response.n_bytes)
            status = 200 if response is not None else error.status if error is not None else None
            ended = Ended(
                request=purpose.request,
                attempt=sent.attempt,
                outcome=outcome,
                status=status,
                tokens=None if settled is None else settled.tokens,
                cost=None if settled is None else settled.money,
                milliseconds=round(1000 * (monotonic() - begin)),
                answer_sha256=digest.hexdigest(),
                answer_bytes=n_bytes,
            )
            await asyncio.shield(asyncio.to_thread(self._log.append, ended))

    def _settle(self, reservation: Reservation, attempt: Attempt, error: CloudError | None) -> Usage | None:
        """What it took; None where that is not known, so that the worst case stays counted."""
        usage = attempt.answer.usage
        if usage is not None:
            self._budget.settle(reservation, usage.n_input, usage.n_output)
            return Usage(1, usage.n_input + usage.n_output, self._budget.price.millionths(usage.n_input, usage.n_output))
        if error is not None and error.kind == "refused":
            self._budget.release(reservation)
            return Usage(0, 0, 0)
        if error is not None and not error.may_be_billed:
            self._budget.settle(reservation, 0, 0)
            return Usage(1, 0, 0)
        return None
