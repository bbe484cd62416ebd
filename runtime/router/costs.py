"""What calls of the cloud cost, by estimate: pairs hold no answers, and nobody has counted their tokens."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.evaluate import LEVELS, Columns, Way
from edgelm.runtime.router.gains_curve import GainsCurve
from edgelm.runtime.router.logistic import Array

_PER_QUESTIONS = 1000


@dataclass(frozen=True)
class Prices:
    """Of a model in the cloud.

    Attributes:
        million_in, million_out: for a million tokens read and written, in any currency.
        n_answer_tokens: that an answer has, by assumption.

    Raises:
        InvalidRequestError: a price or a length is below 0.
    """

    million_in: float
    million_out: float
    n_answer_tokens: int = 300

    def __post_init__(self) -> None:
        if not (self.million_in >= 0 and self.million_out >= 0 and self.n_answer_tokens >= 0):
            raise InvalidRequestError(f"prices and lengths of answers must not be below 0; these are {self}")

    def of_calls(self, n_prompt_tokens: Array) -> Array:
        """The cost of each call, float64 [n]."""
        return (n_prompt_tokens * self.million_in + self.n_answer_tokens * self.million_out) / 1e6


@dataclass(frozen=True)
class CostOfWay:
    """What a thousand questions cost.

    Attributes:
        levels: where each of LEVELS of the gap is recovered.
        all_cloud: where all are asked in the cloud.
    """

    way: str
    levels: tuple[float, ...]
    all_cloud: float


def cost_of(way: Way, columns: Columns, prices: Prices) -> CostOfWay:
    """The cost of a way to choose. Calls of long prompts cost more, so it is not simply the share of calls."""
    costs = prices.of_calls(columns.n_tokens)
    all_cloud = float(costs.mean()) * _PER_QUESTIONS
    gains, spent = GainsCurve.of(way.scores, columns.gains), GainsCurve.of(way.scores, costs)
    at = [spent.at(gains.reach(level)) if all_cloud > 0 else 0.0 for level in LEVELS]
    return CostOfWay(way.name, tuple(share * all_cloud for share in at), all_cloud)
