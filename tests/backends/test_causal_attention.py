"""Attention in blocks of queries against the plain formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgelm.backends.causal_attention import causal_attention

Array = NDArray[np.float32]


def plain(q: Array, k: Array, v: Array, window: int, scale: float, softcap: float) -> NDArray[np.float64]:
    n, n_heads, d = q.shape
    result, shared = np.empty((n, n_heads, d)), n_heads // k.shape[1]
    for head in range(n_heads):
        keys, values = (x[:, head // shared].astype(np.float64) for x in (k, v))
        for i in range(n):
            seen = slice(max(0, i - window + 1), i + 1)
            scores = keys[seen] @ q[i, head].astype(np.float64) * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            p = np.exp(scores - scores.max())
            result[i, head] = p @ values[seen] / p.sum()
    return result.reshape(n, -1)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 150])
@pytest.mark.parametrize("window", [1, 2, 16, 64, 100, 1000])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_the_plain_formula(n: int, window: int, softcap: float) -> None:
    rng = np.random.default_rng(n)
    q, k, v = (rng.standard_normal((n, heads, 8)).astype(np.float32) for heads in (6, 2, 2))
    result = causal_attention(q, k, v, window, 0.7, softcap)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, plain(q, k, v, window, 0.7, softcap), atol=1e-5)


def test_scores_of_any_size() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (1e4 * rng.standard_normal((70, 2, 8)).astype(np.float32) for _ in range(3))
    np.testing.assert_allclose(causal_attention(q, k, v, 70, 1.0, 0.0), plain(q, k, v, 70, 1.0, 0.0), rtol=1e-3, atol=1)


def test_the_arguments_stay_as_they_are() -> None:
    q, k, v = (np.random.default_rng(0).standard_normal((5, 2, 4)).astype(np.float32) for _ in range(3))
    copies = [x.copy() for x in (q, k, v)]
    causal_attention(q, k, v, 5, 0.5, 1.0)
    for x, copy in zip((q, k, v), copies, strict=True):
        np.testing.assert_array_equal(x, copy)
