"""Input channels scaled before quantizing, as AWQ does (Lin et al. 2023, arXiv 2306.00978), with the inverse folded into what feeds them.

Columns of large inputs are multiplied, so that within their group of 32 they get more of the grid: for inputs of root mean square r,

    s_j = r_j^alpha / exp(mean log r^alpha),    W' = W diag(s),    D = (Q(W') - W') diag(1/s),    error = sum over layers trace(D H D^T)

and alpha is the one of a grid that leaves the least error, 0 (no scaling) among them. Q takes scales from the weighted search. H is the
mean outer product of the inputs, or its diagonal where only squares are known. AWQ takes mean |x| for r; the root mean square is what the
error's diagonal weighs by, and what an importance matrix holds. The result is weights and norms of the same shapes: a plain file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.channel_folds import Fold, HeadSizes, folds_of
from edgelm.quant.grid import GridFormat
from edgelm.quant.grid_formats import grid_format
from edgelm.quant.input_statistics import Calibration, InputStatistics
from edgelm.quant.model_file import Tensor
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scale_search import search_scales

Array = NDArray[np.float32]
ALPHAS: tuple[float, ...] = tuple(i / 12 for i in range(13))
_FLOOR = 1e-3  # of the largest channel's root mean square: dead channels would be scaled without end
_ROWS = 256  # of each layer, evenly spread, that alpha is chosen on
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class ChannelScaling:
    """What was chosen for one fold.

    Attributes:
        fold: what feeds what.
        alpha: 0 where nothing is scaled.
        gain: the part of the weighted error that goes away by it, on the rows looked at; 0 where nothing is scaled.
        factors: float32 [fold.n_channels], by which columns are multiplied and rows divided; ones where nothing is scaled.
        skipped: why no alpha was tried; "" where they were.
    """

    fold: Fold
    alpha: float
    gain: float
    factors: Array
    skipped: str = ""


def scale_channels(
    tensors: Mapping[str, Tensor],
    layer: int,
    heads: HeadSizes,
    statistics: Calibration,
    formats: Mapping[str, BlockFormat],
    threads: RowThreads,
) -> tuple[dict[str, Tensor], tuple[ChannelScaling, ...]]:
    """Scale the channels of one block.

    Args:
        tensors: by GGUF name, the block's among them; see folds_of.
        statistics: of the inputs in the float model; weights with the same input need only one entry.
        formats: what the linear layers become. Layers that are missing here, or become floats, have no say.

    Returns:
        The tensors that changed, in F32, with which the block computes the same up to float32 rounding; and what was chosen for each fold.
        Inputs of the changed layers are others than `statistics` says: see `scaled_statistics`.

    Raises:
        ModelFileError: as folds_of.
        InvalidRequestError: weights that are not finite, or statistics of another width.
    """
    changed: dict[str, Tensor] = {}
    chosen = []
    for fold in folds_of(tensors, layer, heads):
        scaling = _choose(fold, tensors, statistics, formats, threads)
        chosen.append(scaling)
        if scaling.alpha:
            changed |= fold.apply({**tensors, **changed}, scaling.factors)
    return changed, tuple(chosen)


def scaled_statistics(statistics: InputStatistics, scaling: ChannelScaling) -> InputStatistics:
    """The same inputs as they enter the fold's consumers afterwards: divided by the factors."""
    inverse = np.float32(1) / scaling.factors[scaling.fold.source]
    squares: Array = statistics.squares * (inverse * inverse)
    outer = None if statistics.outer is None else statistics.outer * np.outer(inverse, inverse)
    return InputStatistics(statistics.n_tokens, squares, outer)


def _choose(
    fold: Fold, tensors: Mapping[str, Tensor], statistics: Calibration, formats: Mapping[str, BlockFormat], threads: RowThreads
) -> ChannelScaling:
    quantized = [name for name in fold.consumers if name in formats and formats[name].n_elements > 1]
    entry = next((statistics[name] for name in fold.consumers if name in statistics), None)
    obstacle = fold.obstacle or _obstacle(quantized, entry)
    ones = np.ones(fold.n_channels, np.float32)
    if obstacle or entry is None:
        return ChannelScaling(fold, 0.0, 0.0, ones, obstacle)
    if entry.squares.shape != fold.source.shape:
        raise InvalidRequestError(
            f"{fold.consumers[0]} has {len(fold.source)} inputs, but the calibration has {entry.n_in}; it belongs to another model"
        )
    layers = [(_sample(tensors[name]), grid_format(formats[name])) for name in quantized]
    magnitude = _magnitude(entry, fold)
    n = np.float32(entry.n_tokens)
    hessian = (entry.squares if entry.outer is None else entry.outer) / n

    def error(alpha: float) -> float:
        spread = _factors(magnitude, alpha)[fold.source]
        return sum(_error(weights, spread, hessian, form, threads) for weights, form in layers)

    errors = [error(alpha) for alpha in ALPHAS]
    best = int(np.argmin(errors))  # the first of equals: no scaling
    gain = 1 - errors[best] / errors[0] if best else 0.0
    return ChannelScaling(fold, ALPHAS[best], gain, _factors(magnitude, ALPHAS[best]))


def _obstacle(quantized: list[str], entry: InputStatistics | None) -> str:
    if not quantized:
        return "none of the layers it feeds is quantized"
    if entry is None:
        return f"the calibration knows nothing of the inputs of {quantized[0]}"
    return "" if entry.squares.any() else f"the inputs of {quantized[0]} were all zero in the calibration"


def _sample(tensor: Tensor) -> Array:
    """Some rows of a matrix, evenly spread."""
    weights = tensor.dequantize()
    if not np.isfinite(weights).all():
        raise InvalidRequestError(f"{tensor.name} has weights that are infinite or not a number; the source is damaged, fetch it again")
    rows = np.linspace(0, len(weights) - 1, min(len(weights), _ROWS)).astype(np.int64)
    return weights[rows]


def _magnitude(entry: InputStatistics, fold: Fold) -> NDArray[np.float64]:
    """Root mean square of each of the fold's channels, [n_channels], over all inputs that it is the source of; at least a floor."""
    squares = np.bincount(fold.source, entry.squares) / np.bincount(fold.source)
    magnitude: NDArray[np.float64] = np.sqrt(np.maximum(squares, _FLOOR**2 * squares.max()))
    return magnitude


def _factors(magnitude: NDArray[np.float64], alpha: float) -> Array:
    powers = alpha * np.log(magnitude)
    factors: Array = np.exp(powers - powers.mean()).astype(np.float32)
    return factors


def _error(weights: Array, spread: Array, hessian: Array, form: GridFormat, threads: RowThreads) -> float:
    """trace(D H D^T) with the weights [n_rows, n_in] scaled by spread [n_in]; hessian [n_in, n_in] or its diagonal [n_in]."""
    squares = hessian if hessian.ndim == 1 else hessian.diagonal()
    lost = np.zeros(len(weights))  # of all the rows of a piece, where the first is

    def work(rows: slice) -> None:
        scaled = weights[rows] * spread
        grid = search_scales(scaled, squares / (spread * spread), form)
        difference = (grid.values(grid.nearest(scaled)) - scaled) / spread
        lost[rows.start] = np.vdot(difference, difference * hessian if hessian.ndim == 1 else difference @ hessian)

    threads.run(work, len(weights), _ROWS_AT_ONCE)
    return float(lost.sum())
