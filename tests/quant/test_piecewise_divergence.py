"""Divergences from pieces of the vocabulary against those from whole logits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgelm.errors import MeasurementError
from edgelm.quant.blocks import F32
from edgelm.quant.divergence import predictions, token_scores
from edgelm.quant.model_file import Tensor
from edgelm.quant.piecewise_divergence import Replaced, piecewise_divergence

Array = NDArray[np.float32]
N_TOKENS = 200
RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgelm.quant.piecewise_divergence._VALUES_AT_ONCE", 256 * N_TOKENS)


class Head:
    """An output layer with a cap on its logits."""

    def __init__(self, weight: Array) -> None:
        self.weight, self.n_vocab, self.pieces = weight, len(weight), set[int]()

    def logits(self, inputs: Array, tokens: slice, replaced: Replaced) -> Array:
        self.pieces.add(tokens.start)
        weight = replaced["head"].dequantize() if replaced else self.weight
        logits: Array = 30 * np.tanh(inputs @ weight[tokens].T / 30)
        return logits


def direct(judge: Array, other: Array) -> NDArray[np.float64]:
    """KL in float64."""
    x, y = (each.astype(np.float64) for each in (judge, other))
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    y -= np.log(np.exp(y).sum(axis=1, keepdims=True))
    kl: NDArray[np.float64] = (np.exp(x) * (x - y)).sum(axis=1)
    return kl


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def whole(head: Head, inputs: Array) -> Array:
    return head.logits(inputs, slice(0, head.n_vocab), {})


def test_equals_the_divergence_of_whole_logits_near_and_far() -> None:
    head, inputs = Head(normal(600, 8)), normal(N_TOKENS, 8)
    others = [inputs + np.float32(far) * normal(*inputs.shape) for far in (0.5, 0.1)]
    steps: list[tuple[int, int]] = []
    found = piecewise_divergence(head, inputs, [lambda x=x: (x, {}) for x in others], lambda *step: steps.append(step))
    assert head.pieces - {0} == {256, 512}
    assert steps == [(0, 3), (1, 3), (2, 3)]
    judge = predictions(whole(head, inputs))
    for kl, other in zip(found, others, strict=True):
        np.testing.assert_allclose(kl, token_scores(judge, whole(head, other), np.zeros(N_TOKENS, np.int32)).kl, rtol=1e-3, atol=2e-6)


def test_tiny_divergences_keep_their_digits() -> None:
    head, inputs = Head(normal(600, 8)), normal(N_TOKENS, 8)
    other = inputs + np.float32(1e-3) * normal(*inputs.shape)
    (kl,) = piecewise_divergence(head, inputs, [lambda: (other, {})], lambda *_: None)
    wanted = direct(whole(head, inputs), whole(head, other))
    assert wanted.mean() < 1e-5
    assert kl.mean() == pytest.approx(wanted.mean(), rel=0.02)


def test_the_same_model_diverges_by_nothing_and_another_output_layer_does() -> None:
    head, inputs = Head(normal(600, 8)), normal(N_TOKENS, 8)
    changed = head.weight + np.float32(0.1) * normal(600, 8)
    replaced = {"head": Tensor("head", changed.shape, F32, changed.reshape(-1).view(np.uint8))}
    same, other = piecewise_divergence(head, inputs, [lambda: (inputs, {}), lambda: (inputs, replaced)], lambda *_: None)
    assert not same.any()
    np.testing.assert_allclose(other, direct(whole(head, inputs), whole(Head(changed), inputs)), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_predictions_that_are_no_numbers_are_reported(bad: float) -> None:
    head, inputs = Head(normal(40, 8)), normal(3, 8)
    other = inputs.copy()
    other[1, 2] = bad
    with pytest.raises(MeasurementError, match="no numbers"):
        piecewise_divergence(head, inputs, [lambda: (other * np.float32(np.nan), {})], lambda *_: None)
