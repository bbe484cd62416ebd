"""One matrix from float weights to blocks, by the methods that there are.

round    the format's own rounding, weight by weight
search   scales by a weighted search, each weight to the nearest level
gptq     that grid, GPTQ, then descent on scales and codes; needs outer products of the inputs
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.descent import descend
from edgelm.quant.gptq import gptq
from edgelm.quant.grid_formats import grid_format
from edgelm.quant.hessian import InverseFactor, damped, factorize
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scale_search import emphasized, search_scales

Array = NDArray[np.float32]
MethodName = Literal["round", "search", "gptq"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)


@dataclass(frozen=True)
class Method:
    """How matrices are quantized.

    Attributes:
        name: one of METHODS.
        n_sweeps: of the descent after GPTQ.
        damping: added to the Hessian's diagonal, in parts of its mean.
        corrects: aim at the outputs that the float model has, although the inputs have changed by what was quantized before.
    """

    name: MethodName = "gptq"
    n_sweeps: int = 4
    damping: float = 0.01
    corrects: bool = True

    def __post_init__(self) -> None:
        if self.name not in METHODS or self.n_sweeps < 0 or not 0 < self.damping < 1:
            raise InvalidRequestError(
                f"method {self.name!r} with {self.n_sweeps} sweeps and damping {self.damping}: give one of {', '.join(METHODS)}, "
                "0 sweeps or more, and a damping between 0 and 1"
            )


@dataclass(frozen=True, eq=False)
class LinearInputs:
    """What is known of the inputs b of some linear layers in the quantized model, and a in the float model, of the same tokens.

    Attributes:
        squares: float32 [n_in], the mean of b_i^2.
        hessian: float32 [n_in, n_in], the mean of b b^T, damped; None where only squares are known.
        factor: of the inverse of that.
        drift: float32 [n_in, n_in], the mean of (a - b) b^T; None where a is b.
    """

    squares: Array
    hessian: Array | None = None
    factor: InverseFactor | None = None
    drift: Array | None = None

    @staticmethod
    def of(outer: Array, damping: float, drift: Array | None = None) -> LinearInputs:
        """From the mean of b b^T, [n_in, n_in].

        Raises:
            InvalidRequestError: the inputs are all zero.
        """
        factor = factorize(outer, damping)
        return LinearInputs(outer.diagonal().copy(), damped(outer, factor.damping), factor, drift)

    def target(self, weights: Array) -> Array:
        """The weights T [n_rows, n_in] for which T b comes nearest to `weights` a: T = W + W drift inv(H), by least squares.

        (The asymmetric calibration of GPTAQ, Li et al. 2025, arXiv 2504.02692, in closed form.)
        """
        return weights if self.drift is None or self.factor is None else weights + self.factor.solve(weights @ self.drift)


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """A matrix in blocks.

    Attributes:
        format: of the blocks.
        data: uint8 [n_bytes].
        error: of the layer's outputs on the calibration text, mean |(W - Q) b|^2 / mean |W b|^2; without inputs |W - Q|^2 / |W|^2.
        energy: what the error is a part of.
    """

    format: BlockFormat
    data: NDArray[np.uint8]
    error: float
    energy: float


def quantize_matrix(
    weights: Array, block_format: BlockFormat, method: Method, inputs: LinearInputs | None, threads: RowThreads
) -> QuantizedMatrix:
    """Quantize weights float32 [n_rows, n_in].

    Raises:
        InvalidRequestError: weights that are not finite or too large for the format, or GPTQ without a Hessian.
    """
    if not np.isfinite(weights).all():
        raise InvalidRequestError("there are weights that are infinite or not a number; the source is damaged, fetch it again")
    if method.name == "round" or block_format.n_elements == 1:
        data = block_format.quantize(weights)
        return _result(weights, block_format, data, block_format.dequantize(data).reshape(weights.shape), inputs)
    form = grid_format(block_format)
    if method.name == "search":
        squares = np.ones(weights.shape[1], np.float32) if inputs is None else inputs.squares
        grid = search_scales(weights, emphasized(weights, squares), form, threads)
        codes = grid.nearest(weights)
    else:
        if inputs is None or inputs.hessian is None or inputs.factor is None:
            raise InvalidRequestError("GPTQ needs the outer products of the layer's inputs; give a calibration text")
        target = inputs.target(weights)
        grid = search_scales(target, inputs.squares, form, threads)
        codes = gptq(target, inputs.factor, grid, threads)
        grid, codes = descend(target, inputs.hessian, grid, codes, method.n_sweeps, threads)
    return _result(weights, block_format, grid.pack(codes), grid.values(codes), inputs)


def _result(
    weights: Array, block_format: BlockFormat, data: NDArray[np.uint8], values: Array, inputs: LinearInputs | None
) -> QuantizedMatrix:
    energy = _weighted(weights, inputs)
    return QuantizedMatrix(block_format, data, _weighted(weights - values, inputs) / energy if energy else 0.0, energy)


def _weighted(x: Array, inputs: LinearInputs | None) -> float:
    """trace(x H x^T), with as much of H as is known."""
    if inputs is None:
        return float(np.vdot(x, x))
    return float(np.vdot(x, x * inputs.squares if inputs.hessian is None else x @ inputs.hessian))
