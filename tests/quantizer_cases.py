"""Weights and inputs of linear layers to quantize, and slow references to hold quantizers against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm.quant.grid import Grid
from edgelm.quant.hessian import factorize
from edgelm.quant.matrix import LinearInputs
from edgelm.quant.row_threads import RowThreads

Array = NDArray[np.float32]
Wide = NDArray[np.float64]


def some_weights(n_rows: int, n_in: int, seed: int = 0) -> Array:
    """Weights as trained layers have them: some rows larger than others, and a few weights far out."""
    rng = np.random.default_rng(seed)
    weights = 0.02 * rng.standard_t(5, (n_rows, n_in)) * np.exp(0.3 * rng.standard_normal((n_rows, 1)))
    return weights.astype(np.float32)


def some_inputs(n_tokens: int, n_in: int, seed: int = 0) -> Array:
    """Vectors whose channels go together, some of them much larger than others."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n_tokens, n_in // 2)) @ rng.standard_normal((n_in // 2, n_in)) / np.sqrt(n_in / 2)
    return ((mixed + 0.3 * rng.standard_normal((n_tokens, n_in))) * np.exp(0.7 * rng.standard_normal(n_in))).astype(np.float32)


def mean_product(a: Array, b: Array) -> Array:
    """The mean of a b^T over tokens [n_tokens, n_in], in float64 until the end."""
    return (a.astype(np.float64).T @ b / len(a)).astype(np.float32)


def inputs_of(b: Array, a: Array | None = None, damping: float = 0.01) -> LinearInputs:
    """What LinearInputs knows of inputs b in the quantized model and a in the float model."""
    with RowThreads(1) as threads:
        return LinearInputs.of(mean_product(b, b), damping, threads, None if a is None else mean_product(a - b, b))


def damped(hessian: Array, damping: float) -> Array:
    """hessian + damping mean(diagonal) I."""
    result = hessian.copy()
    with RowThreads(1) as threads:
        factorize(result, damping, threads)
    return result


def error(difference: Array, hessian: Array) -> Wide:
    """d H d^T of each row, [n_rows]."""
    wide = difference.astype(np.float64)
    result: Wide = np.einsum("ri,ri->r", wide @ hessian.astype(np.float64), wide)
    return result


def slow_gptq(weights: Array, hessian: Array, grid: Grid) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """GPTQ as its paper has it, column by column in float64, taking each out of the inverse of the (damped) Hessian once it is rounded.

    Returns:
        Codes; and for each weight, whether rounding it was a near tie, after which nothing of its row is certain.
    """
    form, size = grid.format, grid.format.group_size
    order = np.argsort(-hessian.diagonal(), kind="stable")
    inverse = np.linalg.inv(hessian.astype(np.float64)[np.ix_(order, order)])
    work = weights.astype(np.float64)[:, order]
    codes, ties = np.zeros(weights.shape, np.uint8), np.zeros(weights.shape, np.bool_)
    for at, i in enumerate(order):
        for row, w in enumerate(work):
            scale = float(grid.scales[row, i // size])
            offset = 0.0 if grid.offsets is None else float(grid.offsets[row, i // size])
            away = np.abs(form.levels - ((w[at] - offset) / scale if scale else 0.0))
            codes[row, i] = away.argmin()
            first, second = np.partition(away, 1)[:2]
            ties[row, i] = bool(scale) and second - first < 2e-3
            rounded = scale * float(form.levels[codes[row, i]]) + offset
            w[at + 1 :] -= (w[at] - rounded) / inverse[0, 0] * inverse[0, 1:]
        inverse = inverse[1:, 1:] - np.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
    return codes, ties
