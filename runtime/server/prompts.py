"""Texts or tokens, one or several, as OpenAI's requests have them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edgelm.runtime.llm import Prompt
from edgelm.runtime.server.sampling_fields import Text

_MOST = 256
Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Prompts = (
    Text
    | Tokens
    | Annotated[list[Text], Field(min_length=1, max_length=_MOST)]
    | Annotated[list[Tokens], Field(min_length=1, max_length=_MOST)]
)


def as_prompts(given: Prompts) -> list[Prompt]:
    """One or several, as a list."""
    if isinstance(given, str):
        return [given]
    several = [prompt for prompt in given if not isinstance(prompt, int)]
    return list(several) or [[token for token in given if isinstance(token, int)]]
