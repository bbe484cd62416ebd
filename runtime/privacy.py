"""How much of a conversation may leave the device. Whoever has a say names a level, and the strictest holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from edgelm.errors import InvalidRequestError


class Level(IntEnum):
    """From the strictest to the freest.

    NEVER   nothing leaves
    ASK     a person is asked each time
    REDACT  personal data that is recognized is replaced before
    ALLOW   the conversation as it is
    """

    NEVER = 0
    ASK = 1
    REDACT = 2
    ALLOW = 3

    @classmethod
    def named(cls, name: str) -> Level:
        """
        Raises:
            InvalidRequestError: there is none of this name.
        """
        try:
            return cls[name.upper()]
        except KeyError:
            raise InvalidRequestError(f"the privacy level is {name!r:.40}; it must be never, ask, redact or allow") from None


@dataclass(frozen=True)
class ConsentRequest:
    """A question for a person. To say yes is to repeat the request with this id, or to answer the router's call.

    Attributes:
        id: cannot be guessed, and is good for one time.
        endpoint, model: who would be asked.
        n_bytes: that would leave.
        entities: kinds of personal data that would be replaced, and how many of each.
        expires_s: seconds for which the question stands.
    """

    id: str
    endpoint: str
    model: str
    n_bytes: int
    entities: Mapping[str, int]
    expires_s: float = 600.0
