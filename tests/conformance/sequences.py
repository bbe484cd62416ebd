"""Chunks and prompts for tests, and how far apart two sets of logits are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import Chunk, Outputs


def chunk(sequence: int, *tokens: int, outputs: Outputs = Outputs.LAST) -> Chunk:
    """The next tokens of a sequence."""
    return Chunk(sequence, np.array(tokens, np.int32), outputs)


def prompt(n: int, seed: int = 0) -> list[int]:
    """n tokens of the tiny model's vocabulary."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, 259, n)]


def distance(actual: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """The largest difference, as a share of the largest wanted magnitude."""
    if actual.shape != wanted.shape:
        raise AssertionError(f"{actual.shape} instead of {wanted.shape}")
    return float(np.abs(actual - wanted).max() / np.abs(wanted).max())
