"""Weights in MatMulNBits' layout against the formats' own dequantization."""

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgelm.errors import UnsupportedModelError
from edgelm.quant.blocks import F16, FORMATS, Q4_1, Q4_K, Q8_0, BlockFormat
from edgelm.quant.pack_nbits import NBits, nbits_layout, pack_nbits

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
