"""Every attempt to reach a cloud, counted and written down: its worst case before it is made, and how it ended after."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

from edgelm.errors import CloudError, EdgeLMError, EgressRefusedError
from edgelm.runtime.privacy import Level
from edgelm.runtime.router.amounts import Usage
from edgelm.runtime.router.budget import Budget, Reservation
from edgelm.runtime.router.cloud_answer import CloudAnswer, CloudUsage
from edgelm.runtime.router.egress import Response
from edgelm.runtime.router.egress_log import EgressLog
from edgelm.runtime.router.egress_record import Ended, Refused, Sent
from edgelm.runtime.router.policy import Permit

LOG = logging.getLogger("edgelm.router")
_N_THREADS = 4

T = TypeVar("T")


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


@dataclass(frozen=True)
class _Opened:
    """An attempt that is counted and written down, and may be made."""

    reservation: Reservation
    sent: Sent
    begin: float = field(default_factory=monotonic)


class Ledger:
    """A budget, and a log beside it: nothing is sent that the budget does not allow, or of which the log could not be written."""

    def __init__(self, budget: Budget, log: EgressLog) -> None:
        self._budget = budget
        self._log = log
        # threads of its own: where the disk or another process keeps them waiting, answers of this device do not wait with them
        self._threads = ThreadPoolExecutor(_N_THREADS, "edgelm-ledger")

    def _run(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    async def kept(self, request: str, origin: str, level: Level, reason: str) -> None:
        """Write down that a request was kept here, though the cloud was to be asked.

        Args:
            reason: which rule kept it, without any of its text.

        Raises:
            RecordError, BusyError: it could not be written.
        """
        await self._run(self._log.append, Refused(request, origin, level.name.lower(), reason))

    @asynccontextmanager
    async def attempt(
        self, permit: Permit, origin: str, model: str, body: bytes, n_output: int, purpose: Purpose, account: Account
    ) -> AsyncIterator[Attempt]:
        """Within it, the attempt is made; how it ends is told by how it is left.

        Args:
            n_output: tokens of the answer, at most.

        Raises:
            BudgetExceededError, RecordError, BusyError, InvalidRequestError: it must not be made.
        """
        opening = self._run(self._open, permit, origin, model, body, n_output, purpose, account.n_attempts + 1)
        try:
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._take_back)
            raise
        account.n_attempts += 1
        attempt, outcome, error = Attempt(), "left", None
        try:
            yield attempt
            outcome = "answered"
        except CloudError as problem:
            outcome, error = problem.kind, problem
            raise
        except EgressRefusedError:
            outcome = "stopped"
            raise
        finally:  # also of an attempt that nobody waits for any more
            await asyncio.shield(self._run(self._close, opened, attempt, outcome, error, account))

    def _open(self, permit: Permit, origin: str, model: str, body: bytes, n_output: int, purpose: Purpose, number: int) -> _Opened:
        # a token is at least a byte of the body, whatever the tokenizer; what JSON puts around messages makes up for the marks between them
        reservation = self._budget.reserve(len(body), n_output)
        worst, level = reservation.worst, permit.level.name.lower()
        sent = Sent(purpose.request, origin, model, level, purpose.reason, number, body, purpose.entities, worst.tokens, worst.money)
        try:
            self._log.append(sent)
        except EdgeLMError:
            self._budget.release(reservation)
            raise
        return _Opened(reservation, sent)

    def _take_back(self, opening: asyncio.Future[_Opened]) -> None:
        """Nobody waits for the attempt any more, and nothing of it was sent."""
        if not opening.cancelled() and opening.exception() is None:
            error = CloudError("nobody waits for it", "refused", may_be_billed=False)
            self._threads.submit(self._close, opening.result(), Attempt(), "left", error, Account())

    def _close(self, opened: _Opened, attempt: Attempt, outcome: str, error: CloudError | None, account: Account) -> None:
        """Count and write down how it ended. Where that fails, the worst case stays counted, and an answer that is there is still given."""
        is_unsent = outcome == "stopped" and attempt.response is None
        settled: Usage | None = None
        try:
            settled = self._settle(opened.reservation, attempt, error, is_unsent)
        except EdgeLMError as problem:
            LOG.warning("the worst case of an attempt stays counted, as its end could not be: %s", problem)
        account.usage = attempt.answer.usage if attempt.answer.is_finished else None
        account.millionths += (settled or opened.reservation.worst).millionths
        response = attempt.response
        digest, n_bytes = (hashlib.sha256(), 0) if response is None else (response.digest, response.n_bytes)
        ended = Ended(
            request=opened.sent.request,
            attempt=opened.sent.attempt,
            outcome=outcome,
            status=200 if response is not None else error.status if error is not None else None,
            tokens=None if settled is None else settled.tokens,
            cost=None if settled is None else settled.money,
            milliseconds=round(1000 * (monotonic() - opened.begin)),
            answer_sha256=digest.hexdigest(),
            answer_bytes=n_bytes,
        )
        try:
            self._log.append(ended)
        except EdgeLMError as problem:
            LOG.warning("how an attempt ended is not in the log: %s", problem)

    def _settle(self, reservation: Reservation, attempt: Attempt, error: CloudError | None, is_unsent: bool) -> Usage | None:
        """What it took; None where that is not known, so that the worst case stays counted."""
        usage = attempt.answer.usage
        if usage is not None and attempt.answer.is_finished:  # before the end it is of a part only
            self._budget.settle(reservation, usage.n_input, usage.n_output)
            return Usage(1, usage.n_input + usage.n_output, self._budget.price.millionths(usage.n_input, usage.n_output))
        if is_unsent or (error is not None and error.kind == "refused"):
            self._budget.release(reservation)
            return Usage(0, 0, 0)
        if error is not None and not error.may_be_billed:
            self._budget.settle(reservation, 0, 0)
            return Usage(1, 0, 0)
        return None
