"""The fields that chat completions and completions have in common, and what they mean here."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from edgelm.errors import InvalidRequestError
from edgelm.runtime.form import Form
from edgelm.runtime.sampling import SamplingParams
from edgelm.runtime.server.errors import RefusedError
from edgelm.runtime.server.strict import Strict

MOST_STOPS = 16


def _check_characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a surrogate pair at character {error.start}, which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_check_characters)]
"""A string that can be written as UTF-8, which not all JSON strings can."""

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_check_characters)]


class StreamOptions(Strict):
    """Of a streamed answer."""

    include_usage: bool = Field(False, description="Send token counts in a last chunk without choices.")


class SamplingFields(Strict):
    """How tokens are chosen and when an answer ends.

    What is not given is chosen by edgelm: temperature 0.8, top_k 40, top_p 0.95, min_p 0.05.
    """

    model: str = Field("", description="Name of the model; the one that is loaded where it is not given.")
    stream: bool = Field(False, description="Send the answer piece by piece, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Of a streamed answer.")
    n: int = Field(1, ge=1, le=16, description="Answers that are wanted. With a seed, answer i has seed + i.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token; larger values draw more freely.")
    top_p: float | None = Field(None, gt=0, le=1, description="Draw among the fewest likeliest tokens whose probabilities add up to it.")
    top_k: int | None = Field(None, ge=0, le=1_000_000, description="Draw among so many likeliest tokens; 0 for all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Drop tokens less likely than this part of the likeliest one.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="The same seed gives the same answer, on an idle server.")
    stop: StopString | Annotated[list[StopString], Field(max_length=MOST_STOPS)] | None = Field(
        None, description=f"Text that ends the answer and is no part of it; up to {MOST_STOPS} strings."
    )
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = Field(
        None, description="Added to the logits of these tokens; -100 forbids one."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Subtracted from the logits of tokens seen before.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="Subtracted as often as the token was seen before.")
    repeat_penalty: float | None = Field(None, gt=0, le=10, description="Divides the logits of tokens seen before; 1 for none.")
    ignore_eos: bool = Field(False, description="Never let the model end the answer (for benchmarks).")
    user: str | None = Field(None, max_length=512, description="Whose request it is: users share the machine evenly.")
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = Field(None, description="Taken, and given back nowhere.")
    timeout: float | None = Field(None, gt=0, le=86400, description="Seconds after which the request has failed.")

    @property
    def wants_usage(self) -> bool:
        """Whether a streamed answer ends with its counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling_params(self, max_tokens: int | None, logprobs: int | None, form: Form | None = None) -> SamplingParams:
        """
        Args:
            max_tokens: of the answer; None for as many as the context holds.
            logprobs: likeliest tokens to tell at each place; None for no log probabilities at all.
            form: what the answer must be.

        Raises:
            RefusedError: a field's value makes no sense.
        """
        if self.stream_options is not None and not self.stream:
            raise RefusedError(400, "stream_options needs stream to be true", param="stream_options")
        names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty", "stop")
        given: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.seed is not None:
            given["seed"] = self.seed % 2**63
        if self.logit_bias is not None:
            given["logit_bias"] = _biases(self.logit_bias)
        try:
            return SamplingParams(**given, max_tokens=max_tokens, logprobs=logprobs, ignore_eos=self.ignore_eos, form=form)
        except InvalidRequestError as error:
            raise RefusedError(400, str(error)) from None


def _biases(given: dict[str, float]) -> dict[int, float]:
    wrong = [token for token in given if not (token.isascii() and token.isdigit() and len(token) < 10)]
    if wrong:
        raise RefusedError(400, f"logit_bias names {wrong[0]!r:.40}; its keys are numbers of tokens", param="logit_bias")
    return {int(token): float("-inf") if bias == -100 else bias for token, bias in given.items()}
