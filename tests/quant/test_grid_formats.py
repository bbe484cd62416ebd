"""Every grid format against the declared blocks, and against gguf as an oracle."""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgelm.quant.blocks import FORMATS, BlockFormat
from edgelm.quant.grid_formats import GRID_FORMATS


def finite_blocks(block: BlockFormat, n_blocks: int, seed: int) -> NDArray[np.uint8]:
    """Arbitrary bytes, but the exponents of float16 fields are not those of infinity and NaN."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, n_blocks * block.n_bytes, dtype=np.uint8).view(block.dtype)
    for field in block.fields:
        if field.dtype == "<f2":
            bits = blocks[field.name].view(np.uint16)
            bits[(bits & 0x7C00) == 0x7C00] ^= 0x4000
    return blocks.view(np.uint8)


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(GRID_FORMATS)), n_rows=st.integers(1, 6), n_blocks=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_any_blocks_come_back_to_the_byte_and_their_values_to_the_bit(name: str, n_rows: int, n_blocks: int, seed: int) -> None:
    block, form = FORMATS[name], GRID_FORMATS[name]
    data = finite_blocks(block, n_rows * n_blocks, seed)
    grid, codes = form.unpack(data, n_rows, n_blocks * block.n_elements)
    np.testing.assert_array_equal(grid.pack(codes), data)
    expected = gguf.quants.dequantize(data.reshape(n_rows, -1), GGMLQuantizationType[name])
    assert grid.values(codes).tobytes() == expected.tobytes()
