"""Where to draw the line: from what is wanted of the router to the confidence below which the cloud is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError

Kind = Literal["cloud-share", "accuracy", "cost"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """What is wanted, of answers like those of the calibration.

    Attributes:
        kind: "cloud-share": this share of the answers is left to the cloud. "accuracy": this share of all answers, the cloud's included, is
            right, with as few calls of the cloud as that takes. "cost": a call of the cloud costs this share of what a wrong answer costs,
            and the sum of both is to be small.
        value: from 0 to 1.
    """

    kind: Kind
    value: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "cloud-share=0.3", "accuracy=0.8" or "cost=0.05".

        Raises:
            InvalidRequestError: it is none of them, or the value is not from 0 to 1.
        """
        name, _, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if name not in get_args(Kind) or not 0.0 <= value <= 1.0:
            raise InvalidRequestError(f"the target is {text!r}; write cloud-share=S, accuracy=A or cost=C, with a number from 0 to 1")
        return cls(cast(Kind, name), value)

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"


@dataclass(frozen=True)
class Outcome:
    """What a threshold does to the answers of the calibration.

    Attributes:
        cloud_share: of answers whose confidence is below it.
        kept_accuracy: of the others; nan where none is kept.
        accuracy: expected of all, with the cloud's answers in place of those below it; None where the cloud's accuracy is not known.
    """

    cloud_share: float
    kept_accuracy: float
    accuracy: float | None


def threshold_of(target: Target, confidence: Array, right: NDArray[np.bool_], cloud_accuracy: float | None) -> float:
    """The confidence below which the cloud is asked.

    Args:
        confidence: of answers that the calibration was not fitted to, float64 [n].
        right: whether they are, bool [n].
        cloud_accuracy: of the cloud on the same questions, assumed or measured.

    Raises:
        InvalidRequestError: the target needs the cloud's accuracy, or cannot be reached.
    """
    if target.kind == "cloud-share":
        return _above(confidence, round(target.value * len(confidence)))
    if cloud_accuracy is None:
        raise InvalidRequestError(f"the target {target} needs the accuracy of the cloud; give --cloud-accuracy, assumed or measured")
    if target.kind == "cost":
        # ask where price + (1 - cloud_accuracy) * wrong < (1 - p) * wrong, the expected costs of both ways
        return min(max(cloud_accuracy - target.value, 0.0), math.nextafter(1.0, 2.0))
    order = np.argsort(confidence, kind="stable")
    n = len(order)
    expected = (np.arange(n + 1) * cloud_accuracy + right.sum() - np.concatenate([[0], right[order].cumsum()])) / n
    ranked = confidence[order]
    can_part = np.concatenate([[True], ranked[1:] > ranked[:-1], [True]])  # answers of one confidence go together
    reached = np.flatnonzero((expected >= target.value - 1e-12) & can_part)
    if not len(reached):
        raise InvalidRequestError(
            f"the target {target} cannot be reached: at best {expected[can_part].max():.3f} of all answers are right, with a cloud that is "
            f"right {cloud_accuracy:g} of the time; ask for less, or from a better cloud"
        )
    return _above(confidence, int(reached[0]))


def outcome(threshold: float, confidence: Array, right: NDArray[np.bool_], cloud_accuracy: float | None) -> Outcome:
    """What comes of a threshold on answers, arguments as of threshold_of."""
    kept = confidence >= threshold
    share = float(1 - kept.mean())
    accuracy = None if cloud_accuracy is None else float((right & kept).mean()) + share * cloud_accuracy
    return Outcome(share, float(right[kept].mean()) if kept.any() else math.nan, accuracy)


def grey_band(threshold: float, confidence: Array, share: float) -> tuple[float, float]:
    """Confidences about the threshold between which this share of the answers lies, half of it on either side.

    Where one side has fewer answers than that, all of them are in it.
    """
    n_below = int((confidence < threshold).sum())
    half = round(share * len(confidence) / 2)
    low = _above(confidence, max(n_below - half, 0))
    return min(low, threshold), max(threshold, _above(confidence, min(n_below + half, len(confidence))))


def _above(confidence: Array, n: int) -> float:
    """A threshold that n of the confidences are below, or the nearest number where several are the same."""
    ranked = np.sort(confidence)
    if n <= 0:
        return 0.0
    if n >= len(ranked):
        return math.nextafter(1.0, 2.0)  # nothing is as sure as that
    if ranked[n - 1] < ranked[n]:
        return float(ranked[n - 1] + ranked[n]) / 2
    first, after = int(np.searchsorted(ranked, ranked[n], "left")), int(np.searchsorted(ranked, ranked[n], "right"))
    return _above(confidence, first if n - first <= after - n else after)
