"""How much of what the cloud could gain is gained, by the share of questions that go there: PGR, APGR and CPT of RouteLLM.

Ong et al., "RouteLLM: Learning to Route LLMs with Preference Data", 2024, section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.logistic import Array

_ROUNDING = 1e-12
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class GainsCurve:
    """Questions in the order in which a router sends them, and what each adds to a total.

    Questions of one score come in any order: between the ends of such a block the expected curve is a straight line.

    Attributes:
        block: of each question, int [n]; 0 for those of the largest score.
        amounts: float64 [n]; what the total is the sum of: by how much the cloud is better, or what it costs.
    """

    block: NDArray[np.intp]
    amounts: Array

    @classmethod
    def of(cls, scores: ArrayLike, amounts: ArrayLike) -> Self:
        """
        Args:
            scores: [n], without nan; the largest go to the cloud first.
            amounts: [n].

        Raises:
            InvalidRequestError: no questions, different lengths, or a score that is nan.
        """
        s, a = np.asarray(scores, np.float64), np.asarray(amounts, np.float64)
        if s.ndim != 1 or s.shape != a.shape or not len(s):
            raise InvalidRequestError(f"scores and amounts must be of one length above 0; their shapes are {s.shape} and {a.shape}")
        if np.isnan(s).any() or np.isnan(a).any():
            raise InvalidRequestError("a score or an amount is nan; leave out rows for which it is not known")
        return cls(np.unique(-s, return_inverse=True)[1], a)

    def points(self, rows: Rows | None = None) -> tuple[Array, Array]:
        """The corners of the curve: share of the questions, and share of the total, float64 [k], from (0, 0) to (1, 1).

        Args:
            rows: of the questions that count, which may repeat; all of them once where None.

        Returns:
            The second is nan where the total is not above 0: there is nothing of which to take a share.
        """
        block, amounts = (self.block, self.amounts) if rows is None else (self.block[rows], self.amounts[rows])
        count, amount = np.bincount(block), np.bincount(block, amounts)
        total = amounts.sum()
        gathered = amount.cumsum() / total if total > 0 else np.full(len(amount), math.nan)
        return np.append(0.0, count.cumsum() / len(block)), np.append(0.0, gathered)

    def area(self, rows: Rows | None = None) -> float:
        """Area under the curve, of amounts that are gains the APGR; nan where the total is not above 0."""
        return float(np.trapezoid(*self.points(rows)[::-1]))

    def reach(self, level: float, rows: Rows | None = None) -> float:
        """The smallest share of the questions by which the curve reaches a level from 0 to 1, of gains the CPT; nan like the area."""
        shares, gathered = self.points(rows)
        reached = gathered >= level - _ROUNDING
        if not reached.any():
            return math.nan
        n = int(reached.argmax())
        if n == 0 or gathered[n] <= level:
            return float(shares[n])
        part = (level - gathered[n - 1]) / (gathered[n] - gathered[n - 1])
        return float(shares[n - 1] + part * (shares[n] - shares[n - 1]))

    def at(self, share: float) -> float:
        """The share of the total at a share of the questions."""
        return float(np.interp(share, *self.points()))
