"""One matrix from float weights to blocks, by the methods that there are.

round    the format's own rounding, weight by weight
search   scales by a weighted search, each weight to the nearest level
gptq     that grid, GPTQ, then descent on scales and codes; needs outer products of the inputs
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.descent import descend
from edgelm.quant.gptq import gptq
from edgelm.quant.grid_formats import grid_format
from edgelm.quant.hessian import InverseFactor, factorize
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scale_search import emphasized, search_scales

Array = NDArray[np.float32]
MethodName = Literal["round", "search", "gptq"]
_ROWS = 96  # at a time, whatever the number of threads; as fast as more, and even the small matrices of k and v make work for several
METHODS: tuple[MethodName, ...] = get_args(MethodName)
_TOO_LARGE = 1e9  # for any format with scales of float16; far from where sums of squares overflow
NOT_FINITE = "there are weights that are infinite or not a number; the source is damaged, fetch it again"


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
    damping: float = 0.5
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
    def of(outer: Array, damping: float, threads: RowThreads, drift: Array | None = None) -> LinearInputs:
        """From the mean of b b^T and, where a is not b, of (a - b) b^T, float32 [n_in, n_in] each.

        The first is used up: it becomes the Hessian.
        Inputs that are all zero have no Hessian.

        Raises:
            InvalidRequestError: the Hessian stays singular however much it is damped.
        """
        squares = outer.diagonal().copy()
        if not squares.any():
            return LinearInputs(squares)
        factor = factorize(outer, damping, threads)
        return LinearInputs(squares, outer, factor, drift)

    def target(self, weights: Array) -> Array:
        """The weights T [n_rows, n_in] for which T b comes nearest to `weights` a: T = W + W drift inv(hessian), by least squares.

        (The asymmetric calibration of GPTAQ, Li et al. 2025, arXiv 2504.02692, in closed form.)
        """
        return weights if self.drift is None or self.factor is None else weights + self.factor.divide(weights @ self.drift)

    def energy(self, x: Array) -> float:
        """The mean of |x b|^2 for x [n_rows, n_in], as well as it is known."""
        if self.hessian is None:
            return float(np.vdot(x, x * self.squares))
        damped = x @ self.hessian - x * (self.hessian.diagonal() - self.squares)
        return float(np.vdot(x, damped))


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """A matrix in blocks.

    Attributes:
        format: of the blocks.
        data: uint8 [n_bytes].
        error: of the layer's outputs on the calibration text, mean |(W - Q) b|^2 / mean |W b|^2; without inputs |W - Q|^2 / |W|^2.
        energy: what the error is a part of.
        note: what should be said aloud of how it was quantized; mostly empty.
    """

    format: BlockFormat
    data: NDArray[np.uint8]
    error: float
    energy: float
    note: str = ""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts the tensor's name before what is said of it."""
    try:
        yield
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{name}: {error}") from error


def quantize_by_what_is_known(
    weights: Array, block_format: BlockFormat, method: Method, inputs: LinearInputs | None, threads: RowThreads
) -> QuantizedMatrix:
    """As quantize_matrix, but where GPTQ has no use for the inputs, the search takes its place, and the result's note says why.

    Without any inputs, as for an embedding, there is no note.
    """
    note = ""
    if method.name == "gptq" and inputs is not None and inputs.factor is not None and inputs.factor.damping > method.damping:
        note = (
            f"its Hessian was singular with damping {method.damping:g}, and was damped by {inputs.factor.damping:g}; a longer text may help"
        )
    if inputs is not None and not inputs.squares.any():
        inputs, note = None, "its inputs are zero throughout the calibration text, which says nothing about them"
    if method.name == "gptq" and (inputs is None or inputs.hessian is None):
        method = replace(method, name="search")
        note = note or ("quantized by search, for the importance matrix has no outer products of its inputs" if inputs is not None else "")
    return replace(quantize_matrix(weights, block_format, method, inputs, threads), note=note)


def quantize_matrix(
    weights: Array, block_format: BlockFormat, method: Method, inputs: LinearInputs | None, threads: RowThreads
) -> QuantizedMatrix:
    """Quantize weights float32 [n_rows, n_in], some rows at a time in each thread: whatever n_rows, temporaries are a few megabytes.

    Raises:
        InvalidRequestError: weights that are not finite or too large for the format, inputs of another width, or GPTQ without a Hessian.
        ModelFileError: n_in is not a whole number of blocks.
    """
    n_rows, n_in = weights.shape
    if inputs is not None and inputs.squares.shape != (n_in,):
        raise InvalidRequestError(
            f"the weights take {n_in} inputs, but the calibration knows {inputs.squares.size}; it is of another model"
        )
    data = np.empty((n_rows, block_format.nbytes((n_in,))), np.uint8)
    lost, energy = np.zeros(n_rows), np.zeros(n_rows)  # of all the rows of a piece, where the first is

    def work(rows: slice) -> None:
        part = np.ascontiguousarray(weights[rows], np.float32)
        if not np.isfinite(part).all():
            raise InvalidRequestError(NOT_FINITE)
        try:
            blocks, values = _quantize_rows(part, block_format, method, inputs)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"of the rows from {rows.start} on, {error}" if rows.start else str(error)) from error
        data[rows] = blocks.reshape(len(part), -1)
        lost[rows.start], energy[rows.start] = _energy(part - values, inputs), _energy(part, inputs)

    threads.run(work, n_rows, _ROWS)
    whole = float(energy.sum())
    return QuantizedMatrix(block_format, data.reshape(-1), float(lost.sum()) / whole if whole > 0 else 0.0, whole)


def _quantize_rows(
    weights: Array, block_format: BlockFormat, method: Method, inputs: LinearInputs | None
) -> tuple[NDArray[np.uint8], Array]:
    """The blocks of some rows and the values that they decode to."""
    if method.name == "round" or block_format.n_elements == 1:
        data = block_format.quantize(weights)
        values = block_format.dequantize(data).reshape(weights.shape)
        if not np.isfinite(values).all():
            raise _too_large(block_format)
        return data, values
    if np.abs(weights).max() > _TOO_LARGE:
        raise _too_large(block_format)
    form = grid_format(block_format)
    if method.name == "search":
        squares = np.ones(weights.shape[1], np.float32) if inputs is None else inputs.squares
        grid = search_scales(weights, emphasized(weights, squares), form)
        codes = grid.nearest(weights)
    else:
        if inputs is None or inputs.hessian is None or inputs.factor is None:
            raise InvalidRequestError("GPTQ needs the outer products of the layer's inputs; give a calibration text")
        target = inputs.target(weights)
        grid = search_scales(target, inputs.squares, form)
        codes = gptq(target, inputs.factor, grid)
        grid, codes = descend(target, inputs.hessian, grid, codes, method.n_sweeps)
    return grid.pack(codes), grid.values(codes)


def _too_large(block_format: BlockFormat) -> InvalidRequestError:
    return InvalidRequestError(f"there are weights too large for {block_format.name}; give bf16 or f32 for this tensor")


def _energy(x: Array, inputs: LinearInputs | None) -> float:
    return float(np.vdot(x, x)) if inputs is None else inputs.energy(x)
