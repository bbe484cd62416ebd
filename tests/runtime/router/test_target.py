"""Thresholds reach what they were set for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.target import Target, grey_band, outcome, threshold_of


def answers(n: int = 4000) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidences that mean what they say."""
    random = np.random.default_rng(5)
    confidence = random.beta(1, 1.5, n)
    return confidence, random.random(n) < confidence


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.99, 1.0])
def test_the_share_of_the_cloud_is_reached(share: float) -> None:
    confidence, right = answers()
    threshold = threshold_of(Target("cloud-share", share), confidence, right, None)
    found = outcome(threshold, confidence, right, None)
    assert found.cloud_share == pytest.approx(share, abs=1 / len(right))
    assert math.isnan(found.kept_accuracy) == (share == 1.0)
    assert found.accuracy is None


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.floats(0, 1))
def test_equal_confidences_go_together_to_the_nearest_share(levels: list[int], share: float) -> None:
    confidence = np.array(levels) / 5
    found = float((confidence < threshold_of(Target("cloud-share", share), confidence, confidence > 2, None)).mean())
    possible = [0.0, *(float((confidence <= level).mean()) for level in confidence)]
    wanted = round(share * len(levels)) / len(levels)
    assert abs(found - wanted) == pytest.approx(min(abs(one - wanted) for one in possible))


@pytest.mark.parametrize("accuracy", [0.5, 0.7, 0.9])
def test_an_accuracy_is_reached_with_as_few_calls_as_possible(accuracy: float) -> None:
    confidence, right = answers()
    threshold = threshold_of(Target("accuracy", accuracy), confidence, right, 0.95)
    found = outcome(threshold, confidence, right, 0.95)
    assert found.accuracy is not None
    assert accuracy <= found.accuracy < accuracy + 0.01
    fewer = np.sort(confidence)[int((confidence < threshold).sum()) - 1]
    one_less = outcome(float(fewer), confidence, right, 0.95).accuracy
    assert one_less is not None
    assert one_less < accuracy


def test_no_threshold_costs_less_than_the_one_for_cost() -> None:
    confidence, right = answers(50_000)
    price, cloud = 0.2, 0.9

    def cost(threshold: float) -> float:
        asked = confidence < threshold
        return float((np.where(asked, price + 1 - cloud, ~right)).mean())

    threshold = threshold_of(Target("cost", price), confidence, right, cloud)
    assert threshold == pytest.approx(0.7)
    assert cost(threshold) <= min(cost(other) for other in np.linspace(0, 1, 41)) + 1e-3


def test_a_cloud_that_costs_more_than_it_helps_is_never_asked() -> None:
    confidence, right = answers()
    assert threshold_of(Target("cost", 1.0), confidence, right, 0.9) == 0.0


def test_what_cannot_be_reached_says_what_can() -> None:
    confidence, right = answers()
    with pytest.raises(InvalidRequestError, match=r"cannot be reached: at best 0\.\d+ of all answers are right"):
        threshold_of(Target("accuracy", 0.99), confidence, right, 0.6)
    with pytest.raises(InvalidRequestError, match="give --cloud-accuracy"):
        threshold_of(Target("accuracy", 0.5), confidence, right, None)


def test_the_grey_band_holds_its_share_on_both_sides() -> None:
    confidence, right = answers()
    threshold = threshold_of(Target("cloud-share", 0.4), confidence, right, None)
    low, high = grey_band(threshold, confidence, 0.3)
    assert ((confidence >= low) & (confidence < threshold)).mean() == pytest.approx(0.15, abs=1e-3)
    assert ((confidence >= threshold) & (confidence < high)).mean() == pytest.approx(0.15, abs=1e-3)
    assert grey_band(threshold, confidence, 0.0) == pytest.approx((threshold, threshold), abs=1e-3)
    assert grey_band(0.0, confidence, 0.2)[0] == 0.0


@pytest.mark.parametrize("text", ["cloud-share", "cloud-share=x", "cloud-share=1.5", "speed=0.5", "cost=nan", ""])
def test_a_target_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="write cloud-share=S, accuracy=A or cost=C"):
        Target.parse(text)


def test_a_target_is_written_as_it_was_read() -> None:
    assert str(Target.parse("accuracy=0.80")) == "accuracy=0.8"
