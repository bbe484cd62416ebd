"""Scales, zero points and codes: the formulas by which real numbers become small whole ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_LEAST_SCALE = 1e-30  # of tensors that are zero throughout


@dataclass(frozen=True)
class Range:
    """The values of a tensor lie from low to high."""

    low: float
    high: float

    def joined(self, other: Range) -> Range:
        """The smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    def widened(self, factor: float) -> Range:
        """Both ends times `factor`."""
        return Range(self.low * factor, self.high * factor)


Ranges = Mapping[str, Range]
"""Ranges of tensors, by name."""


@dataclass(frozen=True)
class Quantization:
    """real = (code - zero_point) * scale for a whole tensor.

    Attributes:
        type: "uint16", "int16" or "uint8".
    """

    type: str
    scale: float
    zero_point: int

    def codes(self, values: NDArray[Any]) -> NDArray[Any]:
        """Codes of real values, rounded to the nearest (halves to even) and held within the type; the shape is kept."""
        limits = np.iinfo(self.type)
        whole = np.rint(values / np.float32(self.scale)) + self.zero_point
        codes: NDArray[Any] = np.clip(whole, limits.min, limits.max).astype(self.type)
        return codes

    @property
    def range(self) -> Range:
        """The least and the greatest real value that has a code."""
        limits = np.iinfo(self.type)
        return Range((limits.min - self.zero_point) * self.scale, (limits.max - self.zero_point) * self.scale)


def asymmetric(span: Range, kind: str) -> Quantization:
    """scale = (high - low) / (2^bits - 1), zero_point = round(-low / scale), of an unsigned type; the range is widened to hold 0."""
    low, high, top = min(span.low, 0.0), max(span.high, 0.0), int(np.iinfo(kind).max)
    scale = float(np.float32(max((high - low) / top, _LEAST_SCALE)))
    return Quantization(kind, scale, min(top, max(0, round(-low / scale))))


def symmetric(span: Range) -> Quantization:
    """int16 with scale = max |x| / 32767 and zero point 0."""
    return Quantization("int16", float(np.float32(max(abs(span.low), abs(span.high)) / 32767 or _LEAST_SCALE)), 0)


def quantize_channels(weight: Array, bits: int) -> tuple[NDArray[np.int8], Array]:
    """Codes int8 [n_out, n_in] and scales float32 [n_out] of a matrix; codes go from -(2^(bits-1) - 1) to 2^(bits-1) - 1, zero point 0.

    At 8 bits scale = max |w| / 127. At 4 bits cutting the greatest weights pays: of max |w| / 7 times 1.0, 0.95, ... 0.5 each row takes the
    scale with the least sum of squared errors.
    """
    codes, scales = np.empty(weight.shape, np.int8), np.empty(len(weight), np.float32)
    for start in range(0, len(weight), 1024):  # some rows at a time, for memory's sake
        rows = slice(start, start + 1024)
        codes[rows], scales[rows] = _quantize_rows(weight[rows], bits)
    return codes, scales


def _quantize_rows(weight: Array, bits: int) -> tuple[NDArray[np.int8], Array]:
    top = (1 << (bits - 1)) - 1
    best: Array = np.maximum(np.abs(weight).max(axis=1) / np.float32(top), np.float32(_LEAST_SCALE))
    if bits == 4:
        widest, least = best, np.full(len(weight), np.inf)
        for cut in np.arange(1.0, 0.45, -0.05, dtype=np.float32):
            scales = widest * cut
            error = np.square(_round_to(weight, scales, top) * scales[:, None] - weight).sum(axis=1)
            best, least = np.where(error < least, scales, best), np.minimum(error, least)
    return _round_to(weight, best, top), best


def _round_to(weight: Array, scales: Array, top: int) -> NDArray[np.int8]:
    codes: NDArray[np.int8] = np.clip(np.rint(weight / scales[:, None]), -top, top).astype(np.int8)
    return codes


def pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """ONNX's INT4 layout: two consecutive codes a byte, the first in the low half; uint8 [(n + 1) / 2] of n codes."""
    flat = codes.reshape(-1).view(np.uint8) & 15
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    packed: NDArray[np.uint8] = np.bitwise_or(flat[0::2], flat[1::2] << np.uint8(4))
    return packed
