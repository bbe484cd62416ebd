"""Sampling: each filter against its definition, and the draw against its probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.runtime.sampling import Sampler, SamplingParams, log_softmax, top_tokens

OPEN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def logits_of(*probabilities: float) -> NDArray[np.float32]:
    return np.log(np.array(probabilities, np.float32))


def drawn(params: SamplingParams, logits: NDArray[np.float32], n: int = 4000, history: tuple[int, ...] = ()) -> NDArray[np.float64]:
    """Share of each token among n draws."""
    sampler = Sampler(params)
    tokens = [sampler.sample(logits, history) for _ in range(n)]
    return np.bincount(tokens, minlength=logits.size) / n


@pytest.fixture
def vocabulary() -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal(49_152).astype(np.float32) * 4


def test_temperature_zero_takes_the_most_likely(vocabulary: NDArray[np.float32]) -> None:
    assert Sampler(SamplingParams(temperature=0)).sample(vocabulary) == int(vocabulary.argmax())


def test_draws_follow_the_probabilities() -> None:
    shares = drawn(SamplingParams(seed=1, **OPEN), logits_of(0.5, 0.3, 0.2))
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.03)


def test_temperature_sharpens() -> None:
    shares = drawn(SamplingParams(seed=1, **{**OPEN, "temperature": 0.5}), logits_of(0.6, 0.4))
    np.testing.assert_allclose(shares, [0.36 / 0.52, 0.16 / 0.52], atol=0.03)


def test_a_tiny_temperature_is_greedy_and_warns_of_nothing() -> None:
    assert Sampler(SamplingParams(**{**OPEN, "temperature": 1e-300})).sample(logits_of(0.4, 0.6)) == 1


def test_top_k_keeps_the_best() -> None:
    shares = drawn(SamplingParams(seed=2, **{**OPEN, "top_k": 2}), logits_of(0.1, 0.4, 0.2, 0.3))
    np.testing.assert_allclose(shares, [0, 4 / 7, 0, 3 / 7], atol=0.03)


@pytest.mark.parametrize(("p", "kept"), [(0.45, {1}), (0.5, {1}), (0.6, {1, 3}), (0.81, {1, 3, 2}), (0.999, {0, 1, 2, 3})])
def test_top_p_keeps_the_fewest_that_reach_p(p: float, kept: set[int]) -> None:
    shares = drawn(SamplingParams(seed=3, **{**OPEN, "top_p": p}), logits_of(0.05, 0.5, 0.15, 0.3), 1000)
    assert set(np.flatnonzero(shares)) == kept


def test_top_p_counts_only_what_top_k_left() -> None:
    # after top_k=2 the shares are 4/7 and 3/7, so p = 0.55 keeps one token; of the whole distribution it would keep two
    shares = drawn(SamplingParams(seed=3, **{**OPEN, "top_k": 2, "top_p": 0.55}), logits_of(0.1, 0.4, 0.2, 0.3), 200)
    assert set(np.flatnonzero(shares)) == {1}


def test_top_p_over_a_flat_vocabulary_looks_beyond_the_first_candidates() -> None:
    flat = np.zeros(5000, np.float32)
    sampler = Sampler(SamplingParams(seed=4, **{**OPEN, "top_p": 0.9}))
    tokens = {sampler.sample(flat) for _ in range(3000)}
    assert max(tokens) > 3000
    assert max(tokens) < 4501


def test_min_p_is_relative_to_the_best() -> None:
    shares = drawn(SamplingParams(seed=5, **{**OPEN, "min_p": 0.45}), logits_of(0.5, 0.3, 0.2), 1000)
    assert set(np.flatnonzero(shares)) == {0, 1}


def test_top_p_counts_what_min_p_drops() -> None:
    # of all weight the first two carry 0.7, so p = 0.65 keeps both; of what min-p leaves (0.7) the first would do for 0.65 * 0.7 = 0.455
    shares = drawn(SamplingParams(seed=6, **{**OPEN, "top_p": 0.65, "min_p": 0.3}), logits_of(0.5, 0.2, 0.1, 0.1, 0.1), 500)
    assert set(np.flatnonzero(shares)) == {0, 1}


def test_repeat_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    params = SamplingParams(temperature=0, repeat_penalty=2.0)
    assert Sampler(params).sample(np.array([3.0, 2.0], np.float32), [0]) == 1
    assert Sampler(params).sample(np.array([-1.0, -1.5], np.float32), [0]) == 1
    assert Sampler(params).sample(np.array([3.0, 1.4], np.float32), [0]) == 0


def test_frequency_penalty_counts_and_presence_penalty_does_not() -> None:
    logits = np.array([3.0, 1.5], np.float32)
    assert Sampler(SamplingParams(temperature=0, frequency_penalty=1.0)).sample(logits, [0]) == 0
    assert Sampler(SamplingParams(temperature=0, frequency_penalty=1.0)).sample(logits, [0, 0]) == 1
    assert Sampler(SamplingParams(temperature=0, presence_penalty=1.0)).sample(logits, [0, 0]) == 0
    assert Sampler(SamplingParams(temperature=0, presence_penalty=2.0)).sample(logits, [0, 0]) == 1


@pytest.mark.parametrize(("window", "token"), [(2, 0), (3, 1), (-1, 1), (0, 0)])
def test_penalty_window(window: int, token: int) -> None:
    params = SamplingParams(temperature=0, presence_penalty=5.0, penalty_window=window)
    assert Sampler(params).sample(np.array([3.0, 1.0, 0.0], np.float32), [0, 2, 2]) == token


def test_logit_bias_and_forbidden_tokens_leave_the_logits_unchanged() -> None:
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    params = SamplingParams(temperature=0, logit_bias={0: 1.5, 2: -math.inf})
    assert Sampler(params).sample(logits) == 0
    assert Sampler(params, forbidden=[0]).sample(logits) == 1
    assert logits.tolist() == [1.0, 2.0, 3.0]


def test_logit_bias_beyond_the_vocabulary() -> None:
    with pytest.raises(InvalidRequestError, match="token 9, but the vocabulary has 3"):
        Sampler(SamplingParams(logit_bias={9: 1.0})).sample(np.zeros(3, np.float32))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logit_bias_that_forbids_everything(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, logit_bias=dict.fromkeys(range(4), -math.inf)))
    with pytest.raises(InvalidRequestError, match="forbids every token"):
        sampler.sample(np.zeros(4, np.float32))


def test_extreme_values_that_are_allowed_warn_of_nothing() -> None:
    for sign in (1, -1):
        extreme = {"presence_penalty": sign * 1e3, "frequency_penalty": sign * 1e3, "logit_bias": {0: sign * 1e30, 1: -sign * 1e30}}
        params = SamplingParams(repeat_penalty=1e3**sign, temperature=1e308, seed=0, **extreme)
        assert Sampler(params).sample(np.array([-9, 9, 1], np.float32), [0, 1]) in range(3)


def test_numbers_of_numpy_are_numbers() -> None:
    params = SamplingParams(temperature=np.float32(0.5), max_tokens=np.int64(3), logit_bias={np.int64(1): np.float32(2)})
    assert params.max_tokens == 3


def test_same_seed_same_tokens(vocabulary: NDArray[np.float32]) -> None:
    def run(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(seed=seed, temperature=1.5))
        return [sampler.sample(vocabulary) for _ in range(40)]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert run(None) != run(None)


def test_top_tokens_are_the_sorted_ones(vocabulary: NDArray[np.float32]) -> None:
    assert top_tokens(vocabulary, 100).tolist() == np.argsort(-vocabulary, kind="stable")[:100].tolist()


@pytest.mark.parametrize("k", [1, 7, 40, 127, 128, 200, 4096, 5000])
@pytest.mark.parametrize("kind", ["many", "few levels", "few allowed", "all equal"])
def test_top_tokens_are_exact_however_the_logits_lie(k: int, kind: str) -> None:
    random = np.random.default_rng(k)
    logits = random.standard_normal(4096 + 17).astype(np.float32)
    if kind == "few levels":
        logits = np.round(logits)
    elif kind == "few allowed":
        logits[random.permutation(logits.size)[20:]] = -np.inf
    elif kind == "all equal":
        logits[:] = 1
    wanted = np.argsort(-logits, kind="stable")[:k]
    found = top_tokens(logits, k)
    n_allowed = int((logits[wanted] > -np.inf).sum())
    assert found[:n_allowed].tolist() == wanted[:n_allowed].tolist()
    assert len(found) >= n_allowed


def test_log_softmax_sums_to_one_and_survives_large_logits() -> None:
    logs = log_softmax(np.array([[1000.0, 999.0], [-1000.0, -1000.0]], np.float32))
    np.testing.assert_allclose(np.exp(logs).sum(axis=-1), 1.0)
    np.testing.assert_allclose(logs[0, 0], -math.log1p(math.exp(-1)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": "hot"}, {"temperature": True}, {"top_k": -1}, {"top_k": 1.5},
        {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -1}, {"min_p": 2}, {"repeat_penalty": 0}, {"presence_penalty": math.inf},
        {"penalty_window": -2}, {"seed": -1}, {"max_tokens": 0}, {"logprobs": -1}, {"stop": ""}, {"stop": ["a", ""]}, {"stop": [1]},
        {"logit_bias": {-1: 0.0}}, {"logit_bias": {1: math.nan}}, {"logit_bias": {1: "x"}}, {"logit_bias": {1: 1e300}},
        {"logit_bias": {10**30: 0.0}}, {"logit_bias": None}, {"stop": None}, {"stop": 5}, {"repeat_penalty": 1e-300},
        {"repeat_penalty": 1e300}, {"presence_penalty": 1e300}, {"frequency_penalty": -1e300},
    ],
)  # fmt: skip
def test_senseless_values_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        SamplingParams(**wrong)


def test_one_stop_string_or_several() -> None:
    assert SamplingParams(stop="end").stop_strings == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
