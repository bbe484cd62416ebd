"""What a model says of its own answer: p(True) of Kadavath et al. 2022 (arXiv 2207.05221), from one token's probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from edgelm.errors import ContextOverflowError
from edgelm.runtime.chat_model import Asker, ChatModel, ChatRequest, TextDelta
from edgelm.runtime.results import TokenLogprob, TopToken
from edgelm.runtime.sampling import SamplingParams

QUESTION = "Is this answer correct? Say only yes or no."
_N_TOP = 20


async def self_verification(model: ChatModel, request: ChatRequest, answer: str, asker: Asker) -> float | None:
    """p(yes) / (p(yes) + p(no)) of the model's next word, when it is asked whether its answer is right.

    The conversation goes on, so that what was computed for the answer serves here, too, and one token is generated. The number is the
    model's own and not calibrated: of itself it says little.

    Args:
        request: which the answer was given to.
        answer: as it was given.

    Returns:
        None where it cannot be told: neither word is among the 20 likeliest, the model gives no log probabilities,
        or there is no room for the question in its context.

    Raises:
        BusyError, DeadlineError, TemplateError: as ChatModel.chat.
    """
    messages = [*request.messages, {"role": "assistant", "content": answer}, {"role": "user", "content": QUESTION}]
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=_N_TOP)
    try:
        events = await model.chat(ChatRequest(messages, params), asker)
    except ContextOverflowError:
        return None
    try:
        logprobs: list[TokenLogprob] = []
        async for event in events:
            if isinstance(event, TextDelta):
                logprobs += event.logprobs or ()
    finally:
        events.close()
    return probability_of_yes(logprobs[0].top) if logprobs else None


def probability_of_yes(top: Sequence[TopToken]) -> float | None:
    """p(yes) / (p(yes) + p(no)); a word that is not among the likeliest tokens counts as the last of them, which it is not above.

    Args:
        top: the likeliest tokens, best first.

    Returns:
        None where neither is among them.
    """
    found = {word: sum(exp(one.logprob) for one in top if one.token.strip().casefold() == word) for word in ("yes", "no")}
    if not any(found.values()):
        return None
    least = exp(top[-1].logprob)
    yes, no = (p or least for p in found.values())
    return yes / (yes + no)
