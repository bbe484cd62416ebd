"""How certain a model was of a token that it drew, from the logits as the model gave them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenCertainty:
    """Of one token, before temperature, bias, penalties and masks. All nan where the logits are not all finite: it is not known then.

    Attributes:
        logprob: natural logarithm of the token's probability.
        margin: ln p of the most likely token minus ln p of the second, whichever was drawn; the logarithm of what Joshi, Porikli and
            Papanikolopoulos (2009) call best versus second best.
        entropy: of the whole distribution, in nats (Shannon 1948).
    """

    logprob: float
    margin: float
    entropy: float


UNKNOWN = TokenCertainty(math.nan, math.nan, math.nan)


def certainty_of(logits: NDArray[np.float32], token: int) -> TokenCertainty:
    """How certain the model was of a token, from logits float32 [n_vocab], at least two of them.

    With x the logits less the largest and Z = Σ exp x: ln p = x - ln Z, and the entropy -Σ p ln p is ln Z - Σ exp(x) x / Z. Exponentials
    are float32 and sums float64, which costs a fifth of a float64 softmax.
    """
    best = int(logits.argmax())
    with np.errstate(invalid="ignore", over="ignore"):  # infinite logits: what comes of them is looked at below
        x = logits - logits[best]
        chosen = float(x[token])
        weights = np.exp(x)
        total = float(weights.sum(dtype=np.float64))
        x[best] = -math.inf
        second = float(x.max())
        x[best] = 0.0
        x *= weights
        mean = float(x.sum(dtype=np.float64)) / total
    if not math.isfinite(mean + second):  # an infinite logit, or one that is nan, is in the sum: 0 * inf is nan
        return UNKNOWN
    log_total = math.log(total)
    return TokenCertainty(chosen - log_total, abs(second), max(log_total - mean, 0.0))
