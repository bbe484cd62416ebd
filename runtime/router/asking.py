"""Asking the cloud for one request, as far as it is allowed: judged, redacted, consented to, permitted, and put back in the answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress

from edgelm.errors import (
    BudgetExceededError,
    BusyError,
    CloudError,
    EdgeLMError,
    EgressRefusedError,
    InvalidRequestError,
    MissingPackageError,
    RecordError,
    RedactionError,
)
from edgelm.runtime.chat_model import Asker, ChatRequest, Event
from edgelm.runtime.privacy import ConsentRequest, Level
from edgelm.runtime.router.cloud import CloudEndpoint
from edgelm.runtime.router.ledger import Account, Purpose
from edgelm.runtime.router.policy import Policy
from edgelm.runtime.router.redact import Redactor
from edgelm.runtime.router.restoring import AnswerRestorer

AskPerson = Callable[[ConsentRequest], Awaitable[bool]]

FAULTS = (
    CloudError,
    BudgetExceededError,
    EgressRefusedError,
    RecordError,
    RedactionError,
    BusyError,
    MissingPackageError,
    InvalidRequestError,
)
"""Why there may be no answer of the cloud. The one of this device is given then."""
_RULES = (BudgetExceededError, EgressRefusedError, RedactionError)
_WORDS: Mapping[type[EdgeLMError], str] = {BudgetExceededError: "budget", EgressRefusedError: "not allowed", RedactionError: "not redacted"}


class Asking:
    """One request on its way to the cloud.

    Args:
        ask_person: asks a person for consent at once; None leaves the question.
        request_id: what logs call the request.

    Attributes:
        account: what it took so far, in the currency.
        redacted: kinds of personal data that were replaced, and how many.
        question: that a person must answer first, where one was left.
        lacks_consent: no person has agreed, though one must.
    """

    def __init__(
        self,
        cloud: CloudEndpoint,
        policy: Policy,
        redactor: Redactor,
        ask_person: AskPerson | None,
        request: ChatRequest,
        asker: Asker,
        request_id: str,
    ) -> None:
        self.account = Account()
        self.currency = cloud.endpoint.currency
        self.redacted: Mapping[str, int] = {}
        self.question: ConsentRequest | None = None
        self.lacks_consent = False
        self._cloud = cloud
        self._policy = policy
        self._redactor = redactor
        self._ask_person = ask_person
        self._request = request
        self._asker = asker
        self._id = request_id

    async def events(self, reason: str, has_consent: bool, timeout_s: float | None) -> AsyncGenerator[Event, None]:
        """The answer's text and calls, and a Finish. It must be closed (`aclosing`).

        Args:
            has_consent: a person has agreed already.
            timeout_s: where less time is left than the endpoint may take.

        Raises:
            FAULTS: there is none, or it breaks off.
        """
        try:
            async with aclosing(self._events(reason, has_consent, timeout_s)) as events:
                async for event in events:
                    yield event
        except _RULES as error:
            with suppress(RecordError, BusyError):  # nothing has left, so the note of it is all that is lost
                word = "no consent" if self.lacks_consent else _WORDS[type(error)]
                await self._cloud.kept(self._id, min((self._policy.level, *self._asker.levels)), word)
            raise

    async def _events(self, reason: str, has_consent: bool, timeout_s: float | None) -> AsyncGenerator[Event, None]:
        cloud, levels = self._cloud, self._asker.levels
        verdict = self._policy.judge(levels)
        redaction = await asyncio.to_thread(self._redactor.redact, self._request) if verdict.redacts else None
        sent = self._request if redaction is None else redaction.request
        self.redacted = {} if redaction is None else dict(redaction.counts)
        body = await asyncio.to_thread(cloud.body, sent)
        if verdict.level is Level.ASK and not has_consent:
            has_consent = await self._is_agreed(body, verdict.redacts)
            self.lacks_consent = not has_consent
        permit = self._policy.permit(levels, cloud.endpoint.address.url, body, redaction is not None, has_consent)
        purpose = Purpose(self._id, reason, self.redacted)
        restorer = None if redaction is None else await asyncio.to_thread(AnswerRestorer, redaction)
        async with aclosing(cloud.answer(permit, sent, body, purpose, self.account, timeout_s)) as events:
            async for event in events:
                for one in (event,) if restorer is None else restorer.push(event):
                    yield one

    async def _is_agreed(self, body: bytes, redacts: bool) -> bool:
        """Whether a person agrees; where none can be asked, the question is left."""
        endpoint, about = self._cloud.endpoint, digest_of(self._request, redacts)
        question = self._policy.question(about, endpoint.address.origin, endpoint.model, len(body), self.redacted)
        if self._ask_person is None:
            self.question = question
            return False
        return await self._ask_person(question) and self._policy.consents(question.id, about)


def digest_of(request: ChatRequest, redacts: bool) -> str:
    """SHA-256 of what would leave, by which a person's consent to one conversation is told from that to another.

    Args:
        redacts: personal data is replaced. Consent to that is none to the text as it is.
    """
    params, use = request.params, request.tools
    tools = [[tool.described() for tool in use.tools], use.must, use.several] if use else None
    form = params.form.text if params.form else None
    asked = [list(map(dict, request.messages)), tools, form, params.stop_strings, params.max_tokens, redacts]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
