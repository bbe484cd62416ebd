"""Self-consistency: the answer that most samples come to, and when it is plain which one that is (Wang et al. 2022, arXiv 2203.11171)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil, comb, floor
from types import MappingProxyType

from edgelm.errors import InvalidRequestError

SURE = 0.95
"""Probability above which a leader is believed to stay one; Adaptive-Consistency's threshold."""


@dataclass(frozen=True)
class Vote:
    """Votes that were cast.

    Attributes:
        weights: of each answer, the sum of its votes' weights, in the order in which the answers came.
        blank: weight of the votes for no answer.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    blank: float = 0.0

    def plus(self, answer: str | None, weight: float = 1.0) -> Vote:
        """With one vote more.

        Args:
            answer: None for a sample that came to nothing that can be compared.
            weight: above 0, and not above 1.

        Raises:
            InvalidRequestError: the weight is none.
        """
        if not 0.0 < weight <= 1.0:
            raise InvalidRequestError(f"the weight of a vote is {weight}; give one above 0, and 1 at most")
        if answer is None:
            return replace(self, blank=self.blank + weight)
        return replace(self, weights=MappingProxyType({**self.weights, answer: self.weights.get(answer, 0.0) + weight}))

    @property
    def leader(self) -> str | None:
        """The answer of the greatest weight, of equal ones the first that came; None before any."""
        return max(self.weights, key=self.weights.__getitem__, default=None)

    @property
    def total(self) -> float:
        """Weight of all votes, blank ones too."""
        return sum(self.weights.values()) + self.blank

    @property
    def share(self) -> float:
        """The leader's part of all votes, blank ones too; 0 before any."""
        return self._first_two[0] / self.total if self.total else 0.0

    @property
    def margin(self) -> float:
        """How far the leader is before the next one, as a part of all votes; 0 before any."""
        first, second = self._first_two
        return (first - second) / self.total if self.total else 0.0

    def is_clear(self, n_remaining: int, sure: float = SURE) -> bool:
        """Whether further votes can be spared: those that remain cannot change the leader, or most probably would not.

        The second is the rule of Adaptive-Consistency (Aggarwal et al. 2023, arXiv 2305.11860). Weights count as whole votes, the
        leader's rounded down and the other's up, so that what is not clear never seems so.
        """
        first, second = self._first_two
        if not first:
            return False
        return first - second > n_remaining or probability_of_lead(floor(first), ceil(second)) > sure

    @property
    def _first_two(self) -> tuple[float, float]:
        first, second, *_ = [*sorted(self.weights.values(), reverse=True), 0.0, 0.0]
        return first, second


def probability_of_lead(n_first: int, n_second: int) -> float:
    """p(x > 1/2) for x ~ Beta(n_first + 1, n_second + 1): that the leader is the likelier of two answers, if all that is known are votes.

    For whole numbers the incomplete beta function is a tail of the binomial distribution, I_x(a, b) = p(Binomial(a + b - 1, x) >= a)
    (Abramowitz and Stegun, 26.5.24), here of fair coins.
    """
    n = n_first + n_second + 1
    return sum(comb(n, k) for k in range(n_first + 1)) / (1 << n)
