"""Attention over a whole window of text at once, for the forward passes that calibrate and evaluate: a block of queries at a time.

A block sees only the keys up to its own end, and of those only the ones within the sliding window of its first query: of n x n scores, half
or fewer are computed, and never more than a block's are in memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_QUERIES = 64


def causal_attention(q: Array, k: Array, v: Array, window: int, scale: float, softcap: float) -> Array:
    """softmax(softcap(q k^T scale)) v, where query i sees the keys j with i - window < j <= i.

    Args:
        q: [n, n_heads, d].
        k, v: [n, n_kv_heads, d]; n_heads / n_kv_heads neighbouring heads share one of each.
        softcap: scores x become softcap tanh(x / softcap); 0 for x itself.

    Returns:
        [n, n_heads * d].
    """
    n, n_kv_heads, d = k.shape
    queries: Array = (q * np.float32(scale)).reshape(n, n_kv_heads, -1, d).transpose(1, 2, 0, 3)  # [kv, group, n, d]
    keys: Array = np.ascontiguousarray(k.transpose(1, 2, 0))  # [kv, d, n]
    values: Array = np.ascontiguousarray(v.transpose(1, 0, 2))  # [kv, n, d]
    mixed = np.empty(queries.shape, np.float32)
    for start in range(0, n, _QUERIES):
        end, first = min(start + _QUERIES, n), max(0, start - window + 1)
        distance = np.arange(start, end)[:, None] - np.arange(first, end)
        mask = np.where((distance >= 0) & (distance < window), np.float32(0), np.float32(-np.inf))
        for head in range(n_kv_heads):
            block: Array = queries[head, :, start:end]  # [group, queries, d]
            scores = (block.reshape(-1, d) @ keys[head, :, first:end]).reshape(*block.shape[:2], -1)
            _cap(scores, softcap)
            scores += mask
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            total = scores.sum(axis=-1, keepdims=True)
            together = (scores.reshape(-1, end - first) @ values[head, first:end]).reshape(block.shape)
            np.divide(together, total, out=mixed[head, :, start:end])
    return mixed.transpose(2, 0, 1, 3).reshape(n, -1)


def _cap(scores: Array, softcap: float) -> None:
    if softcap:
        scores /= np.float32(softcap)
        np.tanh(scores, out=scores)
        scores *= np.float32(softcap)
