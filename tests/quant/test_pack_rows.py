"""The row-of-eight layout: reversible for every format and every content."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from random_blocks import finite_blocks

from edgelm.errors import UnsupportedModelError
from edgelm.quant.block_format import BlockFormat, Field
from edgelm.quant.blocks import FORMATS
from edgelm.quant.grid_formats import GRID_FORMATS
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


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(LAYOUTS)), n_rows=st.integers(1, 10), n_blocks=st.integers(1, 2), seed=st.integers(0, 2**32))
def test_records_read_channel_by_channel_hold_the_codes_and_gguf_s_values(name: str, n_rows: int, n_blocks: int, seed: int) -> None:
    form = GRID_FORMATS[name]
    n_columns = n_blocks * form.block.n_elements
    data = finite_blocks(form.block, n_rows * n_blocks, seed)
    grid, codes = form.unpack(data, n_rows, n_columns)
    records = pack(form.block, grid.pack(codes), n_rows, n_columns).view(LAYOUTS[name].dtype).reshape(-1, n_blocks)
    expected = gguf.quants.dequantize(data.reshape(n_rows, -1), GGMLQuantizationType[name])
    rng = np.random.default_rng(seed)
    for row, column in zip(rng.integers(0, n_rows, 50), rng.integers(0, n_columns, 50), strict=True):
        block, within = divmod(int(column), form.block.n_elements)
        record = records[row // 8, block]
        code, value = read_channel(record, record["groups"][within // 32], int(row) % 8, within % 32, form.levels)
        assert code == codes[row, column]
        assert value == expected[row, column]


def read_channel(record: Any, group: Any, row: int, channel: int, levels: NDArray[np.float32]) -> tuple[int, np.float32]:
    """The code and the value of one channel of a group, as the layout's description says, one byte at a time."""
    part, (k, byte) = {name: group[name] for name in group.dtype.names}, divmod(channel, 4)
    code = int(part["bytes"][k, row, byte]) + 128 if "bytes" in part else int(part["nibbles"][k % 4, row, byte]) >> 4 * (k // 4) & 15
    if "plane" in part:
        code |= (int(part["plane"][row, byte]) >> k & 1) << 4
    if "planes" in part:
        code |= (int(part["planes"][k // 4, row, byte]) >> 2 * (k % 4) & 3) << 4
    d = (part["d"] if "d" in part else record["d"])[row].astype(np.float32)
    if "signed2" in part:
        return code, d * part["signed2"][channel // 16, row] * levels[code]
    if "signed" in part:
        return code, d * part["signed"][row] * levels[code]
    if "scale" in part:
        return code, d * part["scale"][row] * levels[code] - record["dmin"][row].astype(np.float32) * part["min"][row]
    return code, d * levels[code] + (part["m"][row].astype(np.float32) if "m" in part else np.float32(0))


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
