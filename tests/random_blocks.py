"""Blocks of any format with any content, for tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm.quant.block_format import BlockFormat


def finite_blocks(block: BlockFormat, n_blocks: int, seed: int, magnitude: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Arbitrary bytes, but float16 fields are finite; with `magnitude` they lie between these two numbers, of either sign."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, n_blocks * block.n_bytes, dtype=np.uint8).view(block.dtype)
    for field in block.fields:
        if field.dtype != "<f2":
            continue
        if magnitude:
            blocks[field.name] = rng.uniform(*magnitude, n_blocks) * rng.choice([-1, 1], n_blocks)
        else:
            bits = blocks[field.name].view(np.uint16)
            bits[(bits & 0x7C00) == 0x7C00] ^= 0x4000
    return blocks.view(np.uint8)
