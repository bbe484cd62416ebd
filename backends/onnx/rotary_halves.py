"""Every rotary embedding as one that rotates the first half of a head with the second, by another order of the channels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.config import Rope
from edgelm.backends.rope import rope_tables

Array = NDArray[np.float32]


def paired_channels(rope: Rope, head_dim: int, pairs: str) -> NDArray[np.intp]:
    """An order of a head's channels in which channel i rotates with channel i + head_dim / 2, [head_dim].

    Queries and keys in the same order give the same scores, so the order may be chosen freely. Channels that do not rotate are paired too.
    """
    channels = np.arange(head_dim)
    if pairs == "adjacent":
        return np.concatenate([channels[0::2], channels[1::2]])
    rotating, still = np.split(channels, [rope.n_dims])
    return np.concatenate([half for halves in zip(np.split(rotating, 2), np.split(still, 2), strict=True) for half in halves])


def halves_tables(rope: Rope, head_dim: int, n_ctx: int, factors: Array | None) -> tuple[Array, Array]:
    """cos and sin for the order of paired_channels, float32 [n_ctx, head_dim] each; the first half of sin is negated.

    Pairs that do not rotate have the angle 0 and are not scaled by the rotation's magnitude.
    """
    cos, sin = rope_tables(rope, n_ctx, factors)
    still = np.zeros((n_ctx, head_dim // 2 - rope.n_dims // 2), np.float32)
    return np.concatenate([cos, still + 1, cos, still + 1], axis=1), np.concatenate([-sin, still, sin, still], axis=1)
