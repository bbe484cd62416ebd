from __future__ import annotations

import gguf
import libgguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.block_format import BlockFormat, Field
from edgelm.quant.blocks import F32, FORMAT_BY_ID, FORMATS, IQ4_NL, IQ4_XS, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0
from edgelm.quant.k_quants import pack_scales_and_mins, unpack_iq4_xs_scales, unpack_scales_and_mins

ALL = pytest.mark.parametrize("block_format", FORMATS.values(), ids=FORMATS)
BLOCKED = pytest.mark.parametrize("block_format", [f for f in FORMATS.values() if f.n_elements > 1], ids=lambda f: f.name)

# Relative RMS error on Gaussian values that a correct quantizer stays below.
GAUSSIAN_ERROR = {
    "F32": 0.0,
    "F16": 3e-4,
    "BF16": 2e-3,
    "Q4_0": 0.09,
    "Q4_1": 0.08,
    "Q5_0": 0.045,
    "Q5_1": 0.04,
    "Q8_0": 0.006,
    "IQ4_NL": 0.08,
    "Q4_K": 0.08,
    "Q5_K": 0.04,
    "Q6_K": 0.02,
    "IQ4_XS": 0.08,
}


def raw_blocks(block_format: BlockFormat, n_blocks: int, seed: int = 0) -> np.ndarray:
    """Any bytes are valid blocks, so random ones reach every code; infinite and NaN scales come along."""
    return np.random.default_rng(seed).integers(0, 256, (n_blocks, block_format.n_bytes), dtype=np.uint8)


@ALL
def test_description_agrees_with_gguf(block_format: BlockFormat) -> None:
    official = GGMLQuantizationType[block_format.name]
    assert block_format.type_id == official
    assert gguf.GGML_QUANT_SIZES[official] == (block_format.n_elements, block_format.n_bytes)
    assert block_format.dtype.itemsize == block_format.n_bytes
    assert FORMAT_BY_ID[official] is block_format


@ALL
def test_dequantize_equals_gguf_to_the_bit(block_format: BlockFormat) -> None:
    raw = raw_blocks(block_format, 5000)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, GGMLQuantizationType[block_format.name]).reshape(-1)
    np.testing.assert_array_equal(block_format.dequantize(raw), expected)


@BLOCKED
def test_dequantize_equals_libgguf_to_the_bit(block_format: BlockFormat) -> None:
    raw = raw_blocks(block_format, 300, seed=1)
    expected = np.frombuffer(libgguf.dequantize_rows_raw(block_format.type_id, raw, 300, block_format.n_elements), np.float32)
    np.testing.assert_array_equal(block_format.dequantize(raw), expected)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantize_equals_gguf_to_the_bit(name: str) -> None:
    values = np.random.default_rng(2).standard_normal((40, 1024)).astype(np.float32)
    values[0, :64] = 0
    values[1] *= 1e-7
    values[2, ::2] = 0.5
    if name == "BF16":
        values[3, :3] = [np.nan, np.inf, -np.inf]
    expected = gguf.quants.quantize(values, GGMLQuantizationType[name]).view(np.uint8).reshape(-1)
    np.testing.assert_array_equal(FORMATS[name].quantize(values), expected)


@ALL
def test_quantized_gaussian_values_come_back_within_the_format_s_error(block_format: BlockFormat) -> None:
    values = np.random.default_rng(3).standard_normal(256 * 100).astype(np.float32)
    back = block_format.dequantize(block_format.quantize(values))
    assert np.sqrt(np.mean((back - values) ** 2)) <= GAUSSIAN_ERROR[block_format.name]


@pytest.mark.parametrize("block_format", [IQ4_NL, Q4_K, Q5_K, Q6_K, IQ4_XS], ids=lambda f: f.name)
def test_reference_search_is_near_ggml_s(block_format: BlockFormat) -> None:
    values = np.random.default_rng(4).standard_normal((16, 512)).astype(np.float32)
    theirs = np.frombuffer(libgguf.quantize_rows_raw(block_format.type_id, values, 16, 512), np.uint8)
    ours = block_format.quantize(values)

    def error(blocks: np.ndarray) -> float:
        return float(np.linalg.norm(block_format.dequantize(blocks) - values.reshape(-1)))

    assert error(ours) < 1.15 * error(theirs)


@BLOCKED
@settings(deadline=None)
@given(sample=hnp.arrays(np.float32, 32, elements=st.floats(-400, 400, width=32)), scales=hnp.arrays(np.int8, 8))
def test_error_is_bounded_by_the_largest_value_of_the_block(block_format: BlockFormat, sample: np.ndarray, scales: np.ndarray) -> None:
    values = np.outer(scales, sample).astype(np.float32).reshape(-1)[: block_format.n_elements]
    back = block_format.dequantize(block_format.quantize(values))
    assert np.isfinite(back).all()
    # The coarsest case, a 4-bit code and a rounded 6-bit scale, stays within a seventh of the range.
    assert np.abs(back - values).max() <= np.abs(values).max() * (2 / 7) + 1e-4


@BLOCKED
def test_zeros_come_back_as_zeros(block_format: BlockFormat) -> None:
    zeros = np.zeros(512, np.float32)
    np.testing.assert_array_equal(block_format.dequantize(block_format.quantize(zeros)), zeros)


@BLOCKED
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_values_without_a_scale_are_refused(block_format: BlockFormat, bad: float) -> None:
    values = np.ones(512, np.float32)
    values[77] = bad
    with pytest.raises(InvalidRequestError, match=block_format.name):
        block_format.quantize(values)


@ALL
def test_views_and_shapes_are_accepted(block_format: BlockFormat) -> None:
    raw = raw_blocks(block_format, 12, seed=5)
    strided = np.repeat(raw, 2, axis=0)[::2]
    np.testing.assert_array_equal(block_format.dequantize(strided), block_format.dequantize(raw.reshape(3, -1)))
    assert block_format.dequantize(raw[:0]).shape == (0,)


def test_the_result_is_a_copy() -> None:
    raw = F32.quantize(np.ones(4, np.float32))
    F32.dequantize(raw)[:] = 2
    np.testing.assert_array_equal(F32.dequantize(raw), np.ones(4))


def test_nbytes() -> None:
    assert Q4_0.nbytes((3, 64)) == 3 * 2 * 18
    assert Q6_K.nbytes((2, 5, 512)) == 2 * 5 * 2 * 210
    assert F32.nbytes((7,)) == 28
    with pytest.raises(ModelFileError, match=r"rows of 576 values cannot be Q4_K"):
        Q4_K.nbytes((256, 576))


def test_partial_blocks_are_refused() -> None:
    with pytest.raises(ModelFileError, match="33 bytes"):
        Q8_0.dequantize(np.zeros(33, np.uint8))
    with pytest.raises(InvalidRequestError, match="31 values"):
        Q8_0.quantize(np.zeros(31, np.float32))


@pytest.mark.parametrize("fields", [(Field("d", "<f2", 0),), (Field("d", "<f2", 0), Field("qs", "u1", 3, 16))])
def test_a_description_that_does_not_add_up_is_refused(fields: tuple[Field, ...]) -> None:
    with pytest.raises(ValueError, match="WRONG"):
        BlockFormat("WRONG", 99, 32, 18, fields, Q4_0.decode, Q4_0.encode)


@settings(deadline=None)
@given(hnp.arrays(np.uint8, (3, 12)))
def test_packing_scales_inverts_unpacking(packed: np.ndarray) -> None:
    np.testing.assert_array_equal(pack_scales_and_mins(*unpack_scales_and_mins(packed)), packed)


def test_iq4_xs_scales_cover_all_six_bits() -> None:
    low, high = np.array([[0x10, 0x32, 0x54, 0xFF]], np.uint8), np.array([0b11_10_01_00_11_10_01_00], np.uint16)
    np.testing.assert_array_equal(unpack_iq4_xs_scales(low, high)[0], [-32, -15, 2, 19, -28, -11, 15, 31])
