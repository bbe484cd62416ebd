"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864): the tables of cosines and sines, with every way of stretching them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.config import Rope


def rope_tables(
    rope: Rope, n_positions: int, factors: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of the angle of every position and channel pair, float32 [n_positions, n_dims / 2] each, times rope.magnitude.

    angle[p, i] = p * freq_base^(-2i / n_dims) / factors[i] * scale[i], where scale is rope.position_scale, or YaRN's.

    Args:
        factors: [n_dims / 2] or None, as Llama 3 and LongRoPE (arXiv 2402.13753) store them.
    """
    frequencies = rope.freq_base ** (-np.arange(0, rope.n_dims, 2, dtype=np.float64) / rope.n_dims)
    if factors is not None:
        frequencies = frequencies / factors
    scale = rope.position_scale if rope.yarn is None else _yarn_scale(rope)
    angles = np.outer(np.arange(n_positions, dtype=np.float64), frequencies * scale)
    return (np.cos(angles) * rope.magnitude).astype(np.float32), (np.sin(angles) * rope.magnitude).astype(np.float32)


def _yarn_scale(rope: Rope) -> NDArray[np.float64]:
    """YaRN's factor of each frequency, [n_dims / 2] (arXiv 2309.00071, section 3.2).

    1 for pairs that turn more than beta_fast times over the original context, 1 / factor for those below beta_slow turns,
    and between them a linear ramp over the pair's index.
    """
    yarn = rope.yarn
    if yarn is None:
        return np.ones(rope.n_dims // 2)

    def pair_of(turns: float) -> float:
        """The (fractional) pair that turns so many times over the original context."""
        return rope.n_dims * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.freq_base))

    low = max(0, math.floor(pair_of(yarn.beta_fast)))
    high = min(rope.n_dims - 1, math.ceil(pair_of(yarn.beta_slow)))
    ramp = np.clip((np.arange(rope.n_dims // 2) - low) / max(0.001, high - low), 0.0, 1.0)
    return 1.0 - ramp + ramp / yarn.factor
