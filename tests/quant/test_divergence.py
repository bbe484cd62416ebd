import math

import numpy as np
import pytest

from edgelm.errors import InvalidRequestError
from edgelm.quant.divergence import divergence, predictions, token_scores


def logits_of(*rows: list[float]) -> np.ndarray:
    """Logits whose softmax are the rows; each is shifted by an amount that must not matter."""
    return np.array([np.log(row) + 7.0 * i for i, row in enumerate(rows)], np.float32)


def test_equal_predictions_diverge_by_nothing() -> None:
    logits = np.random.default_rng(0).standard_normal((40, 100)).astype(np.float32)
    result = divergence(logits, logits + np.float32(3.0))
    assert result.mean_kl == pytest.approx(0.0, abs=1e-10)
    assert (result.n_tokens, result.top_agreement) == (40, 1.0)


def test_kl_is_of_the_judge_from_the_other_in_nats() -> None:
    judge, other = logits_of([0.5, 0.5], [0.9, 0.1]), logits_of([0.25, 0.75], [0.9, 0.1])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    result = divergence(judge, other)
    assert result.mean_kl == pytest.approx(expected / 2, rel=1e-5)
    assert result.max_kl == pytest.approx(expected, rel=1e-5)


def test_quantiles_are_over_the_positions() -> None:
    rng = np.random.default_rng(3)
    judge = rng.standard_normal((300, 8)).astype(np.float32)
    other = judge + rng.standard_normal(judge.shape).astype(np.float32)
    each = [divergence(judge[i : i + 1], other[i : i + 1]).mean_kl for i in range(len(judge))]
    result = divergence(judge, other)
    assert result.median_kl == pytest.approx(np.median(each))
    assert result.p99_kl == pytest.approx(np.quantile(each, 0.99))
    assert result.median_kl < result.mean_kl < result.p99_kl < result.max_kl


def test_scores_of_tokens_have_the_same_divergence() -> None:
    rng = np.random.default_rng(4)
    judge, other = (rng.standard_normal((40, 9)).astype(np.float32) for _ in range(2))
    targets = rng.integers(0, 9, 40).astype(np.int32)
    scores, result = token_scores(predictions(judge), other, targets), divergence(judge, other)
    assert scores.kl.mean() == pytest.approx(result.mean_kl)
    assert scores.agrees.mean() == result.top_agreement
    p = np.exp(judge.astype(np.float64))
    np.testing.assert_allclose(scores.judge_nll, -np.log(p[np.arange(40), targets] / p.sum(axis=1)))


def test_equal_logits_score_exactly_the_same() -> None:
    logits = np.random.default_rng(5).standard_normal((20, 1000)).astype(np.float32)
    scores = token_scores(predictions(logits), logits.copy(), np.arange(20, dtype=np.int32))
    assert not scores.kl.any()
    assert scores.agrees.all()
    np.testing.assert_array_equal(scores.judge_nll, scores.other_nll)


def test_top_agreement_counts_equal_first_ranks() -> None:
    judge = logits_of([0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.6, 0.3, 0.1])
    other = logits_of([0.6, 0.3, 0.1], [0.4, 0.3, 0.3], [0.3, 0.1, 0.6], [0.6, 0.3, 0.1])
    assert divergence(judge, other).top_agreement == 0.75


def test_small_differences_survive_a_large_vocabulary_and_large_logits() -> None:
    rng = np.random.default_rng(1)
    judge = (1000.0 + rng.standard_normal((3, 50_000))).astype(np.float32)
    noise = rng.standard_normal(judge.shape).astype(np.float32)
    # For noise of variance v, independent of the logits, KL is v / 2 to first order.
    assert divergence(judge, judge + np.float32(0.03) * noise).mean_kl == pytest.approx(0.03**2 / 2, rel=0.05)


def test_masked_tokens_cost_nothing_where_both_mask_them() -> None:
    judge, other = logits_of([0.5, 0.5, 1.0]), logits_of([0.5, 0.5, 1.0])
    judge[0, 2] = other[0, 2] = -np.inf
    assert divergence(judge, other).mean_kl == pytest.approx(0.0, abs=1e-12)
    judge[0, 2] = 0.0
    assert divergence(judge, other).mean_kl == math.inf


@pytest.mark.parametrize("side", ["judge", "other"])
def test_a_logit_that_is_no_number_is_refused(side: str) -> None:
    logits = {"judge": np.zeros((20, 3), np.float32), "other": np.zeros((20, 3), np.float32)}
    logits[side][17, 1] = np.nan
    with pytest.raises(InvalidRequestError, match="position 17"):
        divergence(**logits)


@pytest.mark.parametrize("shape", [(4, 3), (5, 4), (5,), (0, 3)])
def test_shapes_must_agree(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequestError, match="logits of shape"):
        divergence(np.zeros((0, 3) if shape == (0, 3) else (5, 3), np.float32), np.zeros(shape, np.float32))
