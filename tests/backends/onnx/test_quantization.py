"""Real numbers come back from their codes within half a step, and 0 comes back exactly."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgelm.backends.onnx.quantization import Quantization, Range, asymmetric, pack_nibbles, quantize_channels, symmetric

RANGES = [Range(-3.0, 5.0), Range(2.0, 7.0), Range(-7.0, -2.0), Range(0.0, 0.0), Range(-1e-3, 24315.0), Range(-0.25, 0.0)]


def back(quantization: Quantization, codes: np.ndarray) -> np.ndarray:
    return (codes.astype(np.float64) - quantization.zero_point) * quantization.scale


@pytest.mark.parametrize("span", RANGES)
@pytest.mark.parametrize("kind", ["uint16", "uint8", "int16"])
def test_values_of_the_range_come_back_within_half_a_step(span: Range, kind: str) -> None:
    quantization = symmetric(span) if kind == "int16" else asymmetric(span, kind)
    values = np.linspace(span.low, span.high, 1001).astype(np.float32)
    codes = quantization.codes(values)
    assert codes.dtype == kind
    assert np.abs(back(quantization, codes) - values).max() <= quantization.scale * 0.502 + 1e-12
    assert back(quantization, quantization.codes(np.zeros(1, np.float32)))[0] == 0.0


@pytest.mark.parametrize("kind", ["uint16", "uint8", "int16"])
def test_values_beyond_the_range_become_its_ends(kind: str) -> None:
    quantization = symmetric(Range(-2.0, 2.0)) if kind == "int16" else asymmetric(Range(-2.0, 2.0), kind)
    values = back(quantization, quantization.codes(np.array([-1e9, 1e9], np.float32)))
    assert values == pytest.approx([quantization.range.low, quantization.range.high])
    assert values == pytest.approx([-2.0, 2.0], rel=0.01)


def test_the_symmetric_type_has_zero_point_zero() -> None:
    assert symmetric(Range(-1.0, 4.0)) == Quantization("int16", float(np.float32(4.0 / 32767)), 0)


def test_ranges_are_joined_and_widened() -> None:
    assert Range(-1.0, 2.0).joined(Range(0.0, 3.0)) == Range(-1.0, 3.0)
    assert Range(-1.0, 2.0).widened(1.5) == Range(-1.5, 3.0)


def test_each_row_has_its_own_scale() -> None:
    weight = np.random.default_rng(0).standard_normal((1500, 40)).astype(np.float32) * np.logspace(-3, 3, 1500, dtype=np.float32)[:, None]
    codes, scales = quantize_channels(weight, 8)
    assert scales == pytest.approx(np.abs(weight).max(axis=1) / 127)
    assert np.all(np.abs(codes * scales[:, None] - weight) <= scales[:, None] * 0.502)


def test_at_four_bits_cutting_the_greatest_weights_pays() -> None:
    weight = np.random.default_rng(0).standard_normal((50, 400)).astype(np.float32)
    codes, scales = quantize_channels(weight, 4)
    assert np.abs(codes).max() == 7
    widest = np.abs(weight).max(axis=1, keepdims=True) / 7
    plain = np.square(np.rint(weight / widest) * widest - weight).sum()
    assert np.square(codes * scales[:, None] - weight).sum() < 0.9 * plain


def test_rows_of_zeros_stay_zero() -> None:
    for bits in (4, 8):
        codes, scales = quantize_channels(np.zeros((3, 5), np.float32), bits)
        assert not codes.any()
        assert np.all(scales > 0)


@pytest.mark.parametrize("shape", [(3, 5), (2, 8)])
def test_nibbles_are_packed_as_onnx_reads_them(shape: tuple[int, int]) -> None:
    codes = np.random.default_rng(0).integers(-8, 8, shape).astype(np.int8)
    tensor = helper.make_tensor("codes", TensorProto.INT4, shape, pack_nibbles(codes).tobytes(), raw=True)
    assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), codes)
