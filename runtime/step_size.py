"""How many tokens of prompts a step should compute, so that it takes about as long as wanted on this machine."""

from __future__ import annotations

LEAST, MOST = 32, 512


class StepSize:
    """Learns from the steps; begins with the fewest.

    Args:
        seconds: that a step should take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._n_tokens = LEAST

    @property
    def n_tokens(self) -> int:
        """Of the next step."""
        return self._n_tokens

    def note(self, n_tokens: int, seconds: float) -> None:
        """A step computed so many tokens in such a time."""
        if n_tokens >= LEAST:  # fewer tell of the weights' way through memory, not of computing
            self._n_tokens = int(min(max(n_tokens * self._seconds / seconds, LEAST), MOST))
