"""What a model says of its own answers is used where it helps, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgelm.runtime.router.metrics import auroc
from edgelm.runtime.router.verify_answers import inputs_of, learn

N = 600
Array = NDArray[np.float64]


def case(tells: float) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Confidences that say something, and what the model says, which says so much."""
    random = np.random.default_rng(4)
    right = random.random(N) < 0.5
    confidence = 1 / (1 + np.exp(-(right - 0.5 + random.normal(0, 1, N))))
    said_yes = 1 / (1 + np.exp(-(tells * (right - 0.5) + random.normal(0, 1, N))))
    return confidence, said_yes, right


def groups() -> tuple[NDArray[np.intp], list[str]]:
    return np.arange(N) % 10, [str(i) for i in range(N)]


@pytest.mark.parametrize("tells", [2.0, -2.0])
def test_it_is_used_where_it_tells_something_be_it_the_wrong_way_round(tells: float) -> None:
    confidence, said_yes, right = case(tells)
    found = learn(confidence, said_yes, right, *groups())
    assert 0 < found.low < found.gain < found.high
    assert found.logistic is not None
    both = found.logistic.probability(inputs_of(confidence, said_yes))
    assert auroc(both, right) > auroc(confidence, right) + 0.1
    assert np.sign(found.logistic.weights[1]) == np.sign(tells)


def test_it_is_not_used_where_it_tells_nothing() -> None:
    found = learn(*case(0.0), *groups())
    assert found.logistic is None
    assert found.low <= 0


def test_certainty_itself_has_a_logit() -> None:
    assert np.isfinite(inputs_of(np.array([0.0, 1.0]), np.array([1.0, 0.0]))).all()
