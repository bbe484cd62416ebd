"""An answer's certainties, however many, as a few numbers that a regression can weigh."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.runtime.certainty import TokenCertainty

Array = NDArray[np.float64]

_PLAIN = (
    "logprob_sum",
    "logprob_mean",
    "logprob_q05",
    "logprob_q25",
    "logprob_q50",
    "logprob_min",
    "window_min",
    "second_half",
    "first",
    "last",
    "end",
    "margin_mean",
    "margin_q10",
    "margin_first",
    "entropy_mean",
    "entropy_max",
    "entropy_first",
    "log_doubtful",
    "log_length",
)
_BY_LENGTH = ("logprob_mean", "logprob_min", "second_half", "first", "last", "end", "entropy_mean")
FEATURES = (*_PLAIN, *(f"{name}_by_length" for name in _BY_LENGTH))
"""Names of what `features` gives, in order.

logprob_sum to logprob_min: of all log probabilities. window_min: the least mean of _WINDOW in a row. second_half: their mean from the
middle on. first, end: of the first token, and of the last, which is how sure the model was to end. last: the mean of the _WINDOW before
the end, where a short answer or a conclusion stands. margin_, entropy_: the same of margins and entropies. log_doubtful: ln(1 + n) of the
n tokens with less than one half. log_length: ln of the number of tokens. _by_length: times log_length less _USUAL, because a doubtful
token of a short answer is the answer, and one of a long answer may be mere wording.
"""
_WINDOW = 4  # tokens: about what a name or a number takes
_MOST_MARGIN = 20.0  # nats; beyond it nothing is more certain
_DOUBTFUL = math.log(0.5)
_USUAL = math.log(12)  # tokens of a short sentence; near the middle, so that products differ from their factors


def features(certainties: Sequence[TokenCertainty] | None) -> Array | None:
    """The numbers of FEATURES, float64 [n_features]; None where a certainty is not known, or there is none at all."""
    if not certainties:
        return None
    logprob, margin, entropy = np.array([(one.logprob, one.margin, one.entropy) for one in certainties], np.float64).T
    if not math.isfinite(logprob.sum() + margin.sum() + entropy.sum()):
        return None
    margin = np.minimum(margin, _MOST_MARGIN)
    n = len(logprob)
    width = min(_WINDOW, n)
    low, quarter, middle = np.quantile(logprob, [0.05, 0.25, 0.5])
    plain = {
        "logprob_sum": logprob.sum(),
        "logprob_mean": logprob.mean(),
        "logprob_q05": low,
        "logprob_q25": quarter,
        "logprob_q50": middle,
        "logprob_min": logprob.min(),
        "window_min": np.convolve(logprob, np.full(width, 1 / width), "valid").min(),
        "second_half": logprob[n // 2 :].mean(),
        "first": logprob[0],
        "last": logprob[-1 - _WINDOW : -1].mean() if n > 1 else logprob[0],
        "end": logprob[-1],
        "margin_mean": margin.mean(),
        "margin_q10": np.quantile(margin, 0.1),
        "margin_first": margin[0],
        "entropy_mean": entropy.mean(),
        "entropy_max": entropy.max(),
        "entropy_first": entropy[0],
        "log_doubtful": math.log1p((logprob < _DOUBTFUL).sum()),
        "log_length": math.log(n),
    }
    length = plain["log_length"] - _USUAL
    return np.array([*(plain[name] for name in _PLAIN), *(plain[name] * length for name in _BY_LENGTH)], np.float64)
