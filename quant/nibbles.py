"""Two 4-bit codes in a byte, and the table of values behind the codes of IQ4_NL and IQ4_XS."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[Any]  # small integers: packed or unpacked codes

# kvalues_iq4nl of ggml/src/ggml-common.h.
IQ4_TABLE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
IQ4_TABLE.setflags(write=False)


def unpack_nibbles(packed: Codes) -> Codes:
    """uint8 [..., k] to codes uint8 [..., 2, k]: all low nibbles, then all high ones."""
    return np.stack([packed & 15, packed >> 4], axis=-2)


def pack_nibbles(codes: Codes) -> Codes:
    """Codes 0 .. 15, uint8 [..., 2, k], to uint8 [..., k]; the inverse of unpack_nibbles."""
    packed: Codes = codes[..., 0, :] | codes[..., 1, :] << 4
    return packed


# The nearest code by ceil(2 x) + 256, |x| <= 128: middles between table values are multiples of one half, so that tells the side of each.
NEAREST_IQ4 = np.searchsorted(IQ4_TABLE[1:] + IQ4_TABLE[:-1], np.arange(-256, 257)).astype(np.uint8)
NEAREST_IQ4.setflags(write=False)


def nearest_iq4(scaled: NDArray[Any]) -> Codes:
    """Codes of the table values nearest to the given ones, same shape."""
    bounded = np.fmin(np.fmax(scaled, -128), 128)
    codes: Codes = NEAREST_IQ4[np.ceil(bounded * 2).astype(np.int16) + np.int16(256)]
    return codes


def search_iq4_scale(values: NDArray[Any]) -> NDArray[Any]:
    """The scale d, float32 [n], with which d * IQ4_TABLE comes near each row of values [n, k], large values weighing more.

    Fifteen scales around the one that maps the largest value to the table's end are tried; each is then set to its
    weighted least-squares optimum for the codes it gives, and the one of least error is kept.
    """
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=1, keepdims=True), axis=1)
    relative = np.where(largest == 0, np.float32(0), values / largest)
    weights = relative * relative
    best_gain = np.zeros(len(values), np.float32)
    # Where nothing is better: 0 for a row of zeros, not a number where the row has one.
    best = largest[:, 0] * 0
    for end in range(-134, -119):
        table = IQ4_TABLE[nearest_iq4(relative * end)]
        product = (weights * table * relative).sum(axis=1)
        square = (weights * table * table).sum(axis=1)
        gain = np.where(square > 0, product * product / square, 0)
        better = gain > best_gain
        best = np.where(better, largest[:, 0] * (product / square), best)
        best_gain = np.where(better, gain, best_gain)
    return best
