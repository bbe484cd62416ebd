"""The row-of-eight layout: reversible for every format and every content."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelm.errors import UnsupportedModelError
from edgelm.quant.block_format import BlockFormat, Field
from edgelm.quant.blocks import FORMATS
from edgelm.quant.pack_rows import FLOATS, LAYOUTS, pack, packed_bytes, padded_rows, unpack


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(FORMATS)), n_rows=st.integers(1, 40), n_blocks=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_unpack_gives_the_bytes_back(name: str, n_rows: int, n_blocks: int, seed: int) -> None:
    block_format = FORMATS[name]
    n_columns = n_blocks * block_format.n_elements
    data = np.random.default_rng(seed).integers(0, 256, block_format.nbytes((n_rows, n_columns)), dtype=np.uint8)
    packed = pack(block_format, data, n_rows, n_columns)
    assert packed.size == packed_bytes(block_format, n_rows, n_columns)
    np.testing.assert_array_equal(unpack(block_format, packed, n_rows, n_columns), data)


def test_every_format_has_a_layout() -> None:
    assert set(FORMATS) == set(LAYOUTS) | set(FLOATS)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_layout_costs_at_most_three_percent(name: str) -> None:
    block_format = FORMATS[name]
    assert packed_bytes(block_format, 64, 1024) <= 1.03 * block_format.nbytes((64, 1024))


def test_nibbles_lie_as_the_kernels_read_them() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (8, 32), dtype=np.uint8)
    blocks = np.zeros(8, FORMATS["Q4_1"].dtype)
    blocks["qs"] = codes[:, :16] | codes[:, 16:] << 4
    blocks["d"], blocks["m"] = np.arange(8), np.arange(8, 16)
    record = pack(FORMATS["Q4_1"], blocks.view(np.uint8), 8, 32).view(LAYOUTS["Q4_1"].dtype)[0]["groups"][0]
    for k, row, byte in np.ndindex(4, 8, 4):
        assert record["nibbles"][k, row, byte] == codes[row, 4 * k + byte] | codes[row, 16 + 4 * k + byte] << 4
    np.testing.assert_array_equal(record["d"], np.arange(8))
    np.testing.assert_array_equal(record["m"], np.arange(8, 16))


def test_padding_rows_are_zero_weights() -> None:
    block_format = FORMATS["Q4_0"]
    data = np.random.default_rng(1).integers(0, 256, block_format.nbytes((3, 64)), dtype=np.uint8)
    whole = unpack(block_format, pack(block_format, data, 3, 64), padded_rows(3), 64)
    assert not block_format.dequantize(whole[data.size :]).any()


def test_a_format_without_a_layout_is_named() -> None:
    made_up = BlockFormat("Q9_9", 99, 32, 2, (Field("d", "<f2", 0),), FORMATS["Q4_0"].decode, FORMATS["Q4_0"].encode)
    with pytest.raises(UnsupportedModelError, match="Q9_9"):
        packed_bytes(made_up, 8, 32)
