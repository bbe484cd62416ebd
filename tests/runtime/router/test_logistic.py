"""Logistic regression: finds what made the data, and refuses what nothing can be learned from."""

from __future__ import annotations

import numpy as np
import pytest

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.logistic import Logistic, sigmoid


def test_the_weights_that_made_the_labels_are_found() -> None:
    random = np.random.default_rng(1)
    inputs = random.normal([3.0, -2.0], [2.0, 0.5], (20_000, 2))
    labels = random.random(20_000) < sigmoid(0.5 + 0.8 * inputs[:, 0] - 1.5 * inputs[:, 1])
    found = Logistic.fit(inputs, labels)
    assert found.weights / found.scale == pytest.approx([0.8, -1.5], abs=0.1)


def test_probabilities_are_calibrated_on_what_was_fitted() -> None:
    random = np.random.default_rng(2)
    inputs = random.normal(size=(500, 3))
    labels = random.random(500) < 0.3
    assert Logistic.fit(inputs, labels, 0.0).probability(inputs).mean() == pytest.approx(labels.mean(), abs=1e-6)


def test_at_the_optimum_the_gradient_is_zero_though_the_classes_can_be_parted() -> None:
    inputs = np.linspace(-1, 1, 40)[:, None]
    labels = inputs[:, 0] > 0
    found = Logistic.fit(inputs, labels, 0.5)
    standard = (inputs - found.mean) / found.scale
    gradient = standard.T @ (found.probability(inputs) - labels) + 0.5 * found.weights
    assert np.abs(gradient).max() < 1e-5


def test_shares_are_as_good_as_the_rows_they_stand_for() -> None:
    inputs = np.array([[0.0], [1.0], [2.0]])
    shares = np.array([0.25, 0.5, 1.0])
    rows = np.repeat(inputs, 4, axis=0)
    labels = np.array([k < 4 * share for share in shares for k in range(4)])
    assert Logistic.fit(inputs, shares, 0.25).probability(inputs) == pytest.approx(Logistic.fit(rows, labels, 1.0).probability(inputs))


def test_an_input_that_never_changes_has_no_weight() -> None:
    inputs = np.column_stack([np.full(20, 1e6), np.arange(20.0)])
    found = Logistic.fit(inputs, np.arange(20) % 3 == 0)
    assert found.weights[0] == pytest.approx(0.0, abs=1e-9)
    assert np.isfinite(found.probability(inputs)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InvalidRequestError, match="not finite"):
        Logistic.fit(np.array([[1.0], [value]]), np.array([True, False]))


def test_labels_of_one_kind_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="same label"):
        Logistic.fit(np.ones((3, 1)), np.ones(3, bool))


def test_sigmoid_does_not_overflow() -> None:
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
