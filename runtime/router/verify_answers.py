"""Whether asking a model about its own answer tells more than the certainty of its tokens, and what the two say together.

For some models it does, for others what they say of themselves is worse than chance. It is used only where it helped on answers that
nothing was fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.router.logistic import Logistic
from edgelm.runtime.router.metrics import Rows, auroc, bootstrap

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

_PENALTY = 1.0
_ROUNDS = 1000
_SEED = 0
_EDGE = 1e-6  # probabilities of 0 and 1 have no logit


@dataclass(frozen=True)
class Verification:
    """What self-verification adds.

    Attributes:
        logistic: of the confidence and p(yes), as logits; None where it does not help.
        gain, low, high: of the AUROC by it, on answers that were left out, with a 95% interval.
    """

    logistic: Logistic | None
    gain: float
    low: float
    high: float


def learn(confidence: Array, said_yes: Array, right: Bools, folds: NDArray[np.intp], groups: Sequence[str]) -> Verification:
    """Fit on all answers, and judge on those left out.

    Args:
        confidence: float64 [n], of answers that the confidence was not fitted to.
        said_yes: float64 [n], p(yes) of self-verification.
        right: bool [n].
        folds: int [n], what is left out together; groups: [n], what is drawn together in the interval.
    """
    inputs = inputs_of(confidence, said_yes)
    both = np.empty(len(right))
    for fold in np.unique(folds):
        held = folds == fold
        both[held] = Logistic.fit(inputs[~held], right[~held], _PENALTY).probability(inputs[held])

    def gain(rows: Rows) -> float:
        return auroc(both[rows], right[rows]) - auroc(confidence[rows], right[rows])

    low, high = bootstrap(gain, len(right), _ROUNDS, _SEED, groups)
    helps = low > 0.0
    return Verification(Logistic.fit(inputs, right, _PENALTY) if helps else None, gain(np.arange(len(right))), low, high)


def inputs_of(confidence: Array, said_yes: Array) -> Array:
    """The logits of both, float64 [..., 2], of probabilities [...]."""
    p = np.clip(np.stack([confidence, said_yes], axis=-1), _EDGE, 1 - _EDGE)
    return np.log(p / (1 - p))
