"""How much of a conversation may leave the device. Whoever has a say names a level, and the strictest holds."""

from __future__ import annotations

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
