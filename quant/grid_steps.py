"""The float16 step of a block of 256 elements: the scales of its groups are stored as whole multiples of it.

    minimise over d, q    sum_g weight_g * (wish_g - d * q_g)^2,    q_g whole, low <= q_g <= high

For given q the best step is the least-squares one, d = sum(weight wish q) / sum(weight q^2), and the score of q is known without
rounding again. So a few steps around the one that takes the largest wish to the end of the range are tried, each gives its q and
the least-squares step of that q, and the best is kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Where the largest wish comes to lie, in parts of the range's end. Measured on Gaussian scales with even and with lognormal weights: the
# squared error is half to a sixth of that of 1.0 alone.
_REACH = (1.0, 0.88, 0.91, 0.94, 0.97, 1.03, 1.06, 1.09, 1.12)
_SMALLEST = 2.0**-24  # of float16

Doubles = NDArray[np.float64]


def choose_step(wishes: Doubles, weights: Doubles, low: int, high: int) -> NDArray[np.float16]:
    """The step [n] for wishes [n, n_groups] with weights of the same shape, 0 or more.

    low is 0 or negative. Where it is 0 and the wishes have both signs, the step takes the sign with more weighted squares, and wishes of
    the other sign become 0. Steps too large for float16 come back infinite.
    """
    weights = np.where(weights.any(axis=1, keepdims=True), weights, 1.0)
    largest = _largest_magnitude(wishes) if low else _largest_of_the_heavier_sign(wishes, weights)
    best = np.zeros(len(wishes), np.float16)
    best_gain = np.full(len(wishes), -np.inf)
    ends = (low, high) if low else (high,)
    for end in (end * reach for reach in _REACH for end in ends):
        step = _as_step(largest / end)
        q = whole_multiples(wishes, step, low, high)
        product, square = np.einsum("ng,ng,ng->n", weights, wishes, q), np.einsum("ng,ng,ng->n", weights, q, q)
        step = np.where(square == 0, step, _as_step(_divide(product, square)))
        gain = step * (2 * product - step * square)  # what the squares fall by, from those of the wishes themselves
        better = gain > best_gain
        best, best_gain = np.where(better, step, best), np.where(better, gain, best_gain)
    return np.where(np.isinf(_as_step(largest / ends[0])), np.float16(np.inf), best)


def whole_multiples(wishes: Doubles, step: NDArray[np.float16], low: int, high: int) -> Doubles:
    """The whole numbers q [n, n_groups] for which step * q comes nearest to the wishes; 0 where the step is 0."""
    q: Doubles = np.rint(_divide(wishes, step.astype(np.float64)[:, None])).clip(low, high)
    return q


def find_step(products: Doubles, tolerances: Doubles, low: int, high: int) -> NDArray[np.float16]:
    """A step [n] of which the products [n, n_groups] are whole multiples within low .. high, each but for its tolerance (same shape).

    Several steps may do, as 2 * 1 is 1 * 2. The one with the largest multiples is taken, because quantizers use the whole range; rows
    without any get 0.
    """
    steps = np.zeros(len(products), np.float16)
    open_rows = np.flatnonzero((np.abs(products) > tolerances).any(axis=1))
    for multiple in sorted({*range(low, high + 1)} - {0}, key=lambda k: (-abs(k), k)):
        rows, margins = products[open_rows], tolerances[open_rows]
        step = (_largest_magnitude(rows) / multiple).astype(np.float16)
        q = whole_multiples(rows, step, low, high)
        found = (np.abs(step.astype(np.float64)[:, None] * q - rows) <= margins).all(axis=1)
        steps[open_rows[found]] = step[found]
        open_rows = open_rows[~found]
    return steps


def _divide(a: Doubles, b: Doubles) -> Doubles:
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def _as_step(step: Doubles) -> NDArray[np.float16]:
    """Rounded to float16, but not to 0: whole multiples of its smallest number still come nearer to tiny wishes than 0 does."""
    at_least = np.where(step == 0, 0, np.copysign(np.maximum(np.abs(step), _SMALLEST), step))
    return at_least.astype(np.float16)


def _largest_magnitude(wishes: Doubles) -> Doubles:
    largest: Doubles = np.take_along_axis(wishes, np.abs(wishes).argmax(axis=1, keepdims=True), axis=1)[:, 0]
    return largest


def _largest_of_the_heavier_sign(wishes: Doubles, weights: Doubles) -> Doubles:
    signed_squares = np.einsum("ng,ng,ng->n", weights, wishes, np.abs(wishes))
    largest: Doubles = np.where(signed_squares < 0, wishes.min(axis=1), wishes.max(axis=1))
    return largest
