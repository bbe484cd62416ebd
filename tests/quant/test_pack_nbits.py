"""Weights in MatMulNBits' layout against the formats' own dequantization, and back."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import onnxruntime
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from random_blocks import finite_blocks

from edgelm.errors import InvalidRequestError, UnsupportedModelError
from edgelm.quant.blocks import F16, FORMATS, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0, BlockFormat
from edgelm.quant.grid_formats import GRID_FORMATS
from edgelm.quant.open_model import open_model
from edgelm.quant.pack_nbits import NBits, nbits_layout, pack_nbits, unpack_nbits

ROWS, COLUMNS = 6, 512
QUANTIZED = [f for f in FORMATS.values() if f.n_elements > 1]
WEIGHTS = np.random.default_rng(3).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def packed(block_format: BlockFormat, weights: NDArray[np.float32] = WEIGHTS) -> tuple[NBits, NDArray[np.float32]]:
    data = block_format.quantize(weights)
    return pack_nbits(block_format, data, weights.shape[1]), block_format.dequantize(data).reshape(weights.shape)


@pytest.mark.parametrize("block_format", QUANTIZED, ids=lambda f: f.name)
def test_nothing_is_rounded(block_format: BlockFormat) -> None:
    weights, wanted = packed(block_format)
    np.testing.assert_allclose(weights.dequantize(), wanted, rtol=0, atol=1e-6)
    if weights.offsets is None:
        np.testing.assert_array_equal(weights.dequantize(), wanted)


@pytest.mark.parametrize("block_format", QUANTIZED, ids=lambda f: f.name)
def test_shapes_are_those_the_layout_foretells(block_format: BlockFormat) -> None:
    weights, _ = packed(block_format)
    layout = nbits_layout(block_format)
    assert layout == weights.layout
    assert layout is not None
    codes, scales = layout.shapes(ROWS, COLUMNS)
    assert (weights.codes.shape, weights.scales.shape) == (codes, scales)
    assert (weights.offsets is not None) == layout.has_offsets


@pytest.mark.parametrize("block_format", QUANTIZED, ids=lambda f: f.name)
def test_matmulnbits_reads_the_codes_as_they_are_meant(block_format: BlockFormat) -> None:
    weights, wanted = packed(block_format)
    x = np.random.default_rng(4).standard_normal((3, COLUMNS)).astype(np.float32)
    offsets = np.zeros_like(weights.scales) if weights.offsets is None else weights.offsets
    sums = x.reshape(3, -1, weights.layout.block_size).sum(axis=-1)
    np.testing.assert_allclose(matmulnbits(weights, x) + sums @ offsets.T, x @ wanted.T, rtol=0, atol=1e-4)


def matmulnbits(weights: NBits, x: NDArray[np.float32]) -> NDArray[np.float32]:
    layout = weights.layout
    attributes = {"K": COLUMNS, "N": ROWS, "bits": layout.bits, "block_size": layout.block_size, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", **attributes)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    constants = [numpy_helper.from_array(weights.codes, "codes"), numpy_helper.from_array(weights.scales, "scales")]
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return y


@pytest.mark.parametrize("block_format", [Q4_1, Q4_K], ids=lambda f: f.name)
def test_blocks_of_one_value_stay_exact(block_format: BlockFormat) -> None:
    """Their scale is 0, and all that they have is the minimum."""
    weights, wanted = packed(block_format, np.full((2, 256), -0.75, np.float32))
    np.testing.assert_array_equal(weights.dequantize(), wanted)
    assert (wanted < -0.7).all()


def test_all_codes_of_eight_bits_survive() -> None:
    data = np.zeros((8, 34), np.uint8)
    data[:, :2] = np.array([1.0], np.float16).view(np.uint8)
    data[:, 2:] = np.arange(256, dtype=np.uint8).reshape(8, 32)
    np.testing.assert_array_equal(pack_nbits(Q8_0, data.reshape(-1), 256).dequantize(), Q8_0.dequantize(data.reshape(-1))[None])


def test_float_formats_are_refused() -> None:
    assert nbits_layout(F16) is None
    with pytest.raises(UnsupportedModelError, match="--requantize"):
        pack_nbits(F16, np.zeros(64, np.uint8), 32)
    with pytest.raises(InvalidRequestError, match="not how F16"):
        unpack_nbits(F16, packed(Q8_0)[0])


SHAPES = {"n_rows": st.integers(1, 5), "n_blocks": st.integers(1, 3), "seed": st.integers(0, 2**32)}


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["Q4_0", "Q5_0", "Q8_0", "IQ4_NL"]), **SHAPES)
def test_any_bytes_come_back_where_a_group_has_its_scale_alone(name: str, n_rows: int, n_blocks: int, seed: int) -> None:
    block = FORMATS[name]
    data = finite_blocks(block, n_rows * n_blocks, seed)
    np.testing.assert_array_equal(unpack_nbits(block, pack_nbits(block, data, n_blocks * block.n_elements)), data)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["Q4_1", "Q5_1"]), **SHAPES)
def test_scales_and_minima_of_like_size_come_back_to_the_byte(name: str, n_rows: int, n_blocks: int, seed: int) -> None:
    block = FORMATS[name]
    data = finite_blocks(block, n_rows * n_blocks, seed, magnitude=(0.01, 4.0))
    np.testing.assert_array_equal(unpack_nbits(block, pack_nbits(block, data, n_blocks * block.n_elements)), data)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["Q4_1", "Q5_1", "Q6_K", "IQ4_XS"]), **SHAPES)
def test_any_blocks_come_back_as_ones_of_the_same_numbers(name: str, n_rows: int, n_blocks: int, seed: int) -> None:
    assert_same_numbers(FORMATS[name], finite_blocks(FORMATS[name], n_rows * n_blocks, seed), n_rows)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]), **SHAPES)
def test_blocks_with_steps_of_like_size_come_back_with_the_same_values(name: str, n_rows: int, n_blocks: int, seed: int) -> None:
    block = FORMATS[name]
    data = finite_blocks(block, n_rows * n_blocks, seed, magnitude=(0.001, 0.02))
    back = assert_same_numbers(block, data, n_rows)
    expected = gguf.quants.dequantize(data.reshape(n_rows, -1), GGMLQuantizationType[name])
    np.testing.assert_array_equal(gguf.quants.dequantize(back.reshape(n_rows, -1), GGMLQuantizationType[name]), expected)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K"])
def test_minima_are_found_behind_rounded_offsets(name: str) -> None:
    assert_same_numbers(FORMATS[name], finite_blocks(FORMATS[name], 1000, 0, magnitude=(0.0005, 0.5)), 10)


def assert_same_numbers(block: BlockFormat, data: NDArray[np.uint8], n_rows: int) -> NDArray[np.uint8]:
    n_columns = data.size // block.n_bytes // n_rows * block.n_elements
    weights = pack_nbits(block, data, n_columns)
    back = unpack_nbits(block, weights)
    again = pack_nbits(block, back, n_columns)
    np.testing.assert_array_equal(again.codes, weights.codes)
    np.testing.assert_array_equal(again.scales, weights.scales)
    np.testing.assert_array_equal(again.offsets, weights.offsets)
    return back


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(GRID_FORMATS)), **SHAPES)
def test_values_are_those_of_gguf(name: str, n_rows: int, n_blocks: int, seed: int) -> None:
    block = FORMATS[name]
    data = finite_blocks(block, n_rows * n_blocks, seed, magnitude=(0.001, 0.02))
    expected = gguf.quants.dequantize(data.reshape(n_rows, -1), GGMLQuantizationType[name])
    values = pack_nbits(block, data, n_blocks * block.n_elements).dequantize()
    np.testing.assert_allclose(values, expected, rtol=0, atol=0 if not GRID_FORMATS[name].has_offset else 1e-5)


def test_a_minimum_that_was_lost_comes_back_as_one_of_the_same_offset() -> None:
    blocks = np.zeros(1, Q4_1.dtype)
    blocks["d"], blocks["m"] = 1000, 1e-5
    back = assert_same_numbers(Q4_1, blocks.view(np.uint8), 1)
    assert back.view(Q4_1.dtype)["m"] == 0


def test_numbers_that_no_block_holds_are_refused() -> None:
    weights, _ = packed(Q4_0)
    with pytest.raises(InvalidRequestError, match="no Q4_0 blocks"):
        unpack_nbits(Q4_0, replace(weights, scales=weights.scales * np.float32(1.0001)))
    with pytest.raises(InvalidRequestError, match="no IQ4_NL blocks"):
        unpack_nbits(FORMATS["IQ4_NL"], packed(Q8_0)[0])
    with pytest.raises(InvalidRequestError, match="not how Q6_K"):
        unpack_nbits(Q6_K, weights)
    scales = packed(Q6_K)[0].scales * np.linspace(1, 1.1, 32, dtype=np.float32)
    with pytest.raises(InvalidRequestError, match="no Q6_K blocks"):
        unpack_nbits(Q6_K, replace(packed(Q6_K)[0], scales=scales))


def test_infinite_scales_are_refused_where_they_cannot_be_told_apart() -> None:
    blocks = np.zeros(1, Q4_K.dtype)
    blocks["d"], blocks["scales"] = np.inf, 0x21
    with pytest.raises(InvalidRequestError, match="no Q4_K blocks"):
        unpack_nbits(Q4_K, pack_nbits(Q4_K, blocks.view(np.uint8), 256))


def test_the_matrices_of_a_real_file_come_back_to_the_byte(gemma3_path: Path) -> None:
    """Q4_K, Q5_0, Q6_K and Q8_0 as llama.cpp's quantizer wrote them."""
    seen = set()
    for name, tensor in open_model(gemma3_path).tensors.items():
        if name.startswith(("blk.0.", "blk.1.", "blk.17.")) and nbits_layout(tensor.format):
            data = tensor.data.reshape(-1)
            np.testing.assert_array_equal(unpack_nbits(tensor.format, pack_nbits(tensor.format, data, tensor.shape[-1])), data)
            seen.add(tensor.format.name)
    assert seen == {"Q4_K", "Q5_0", "Q6_K", "Q8_0"}
