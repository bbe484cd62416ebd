"""Input channels scaled before quantizing, as AWQ does (Lin et al. 2023, arXiv 2306.00978), with the inverse folded into what feeds them.

Columns of large inputs are multiplied, so that within their group of 32 they get more of the grid: for inputs of root mean square r,

    s_j = r_j^alpha / exp(mean log r^alpha),    W' = W diag(s),    x' = x / s,    error = sum over layers of mean |(Q(W') - W') x'|^2

and alpha is the one of a grid that leaves the least error, 0 (no scaling) among them; Q is the method that will quantize the layers. GPTQ
asks for less scaling than a search, because it makes up for much of what scaling would save. AWQ takes mean |x| for r; the root mean square
is what the error weighs by, and what an importance matrix holds. The result is weights and norms of the same shapes: a plain file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.channel_folds import Fold, HeadSizes, folds_of
from edgelm.quant.input_statistics import Calibration, InputStatistics
from edgelm.quant.matrix import LinearInputs, Method, naming, quantize_matrix
from edgelm.quant.model_file import Tensor
from edgelm.quant.row_threads import RowThreads

Array = NDArray[np.float32]
ALPHAS: tuple[float, ...] = tuple(i / 12 for i in range(10))
_FLOOR = 1e-3  # of the largest channel's root mean square: dead channels would be scaled without end
_ROWS = 128  # of each layer, evenly spread, that alpha is chosen on


@dataclass(frozen=True, eq=False)
class ChannelScaling:
    """What was chosen for one fold.

    Attributes:
        fold: what feeds what.
        alpha: 0 where nothing is scaled.
        gain: the part of the layers' error that goes away by it, on the rows looked at; 0 where nothing is scaled.
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
    method: Method,
    threads: RowThreads,
) -> tuple[dict[str, Tensor], tuple[ChannelScaling, ...]]:
    """Scale the channels of one block.

    Args:
        tensors: by GGUF name, the block's among them; see folds_of.
        statistics: of the inputs in the float model; weights with the same input need only one statistics.
        formats: what the linear layers become. Layers that are missing here, or become floats, have no say.
        method: how they will be quantized; its sweeps are left out. Where outer products are not known, search stands in for GPTQ.

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
        known = next((statistics[name] for name in fold.consumers if name in statistics), None)
        scaling = choose_scaling(fold, tensors, known, formats, method, threads)
        chosen.append(scaling)
        if scaling.alpha:
            changed |= fold.apply({**tensors, **changed}, scaling.factors)
    return changed, tuple(chosen)


def scale_model(
    tensors: Mapping[str, Tensor],
    heads: HeadSizes,
    groups: Iterable[tuple[tuple[str, ...], InputStatistics]],
    formats: Mapping[str, BlockFormat],
    method: Method,
    threads: RowThreads,
) -> Iterator[ChannelScaling]:
    """Choose for all folds of a model, as scale_channels does, while its calibration goes on.

    Args:
        groups: names of weights with one input, and its statistics, as quant/calibrate.py yields them; other names are passed over.
    """
    for names, statistics in groups:
        prefix, number = names[0].split(".")[:2]
        for fold in folds_of(tensors, int(number), heads) if prefix == "blk" else ():
            if fold.consumers and fold.consumers[0] in names:
                yield choose_scaling(fold, tensors, statistics, formats, method, threads)


def scaled_statistics(statistics: InputStatistics, scaling: ChannelScaling) -> InputStatistics:
    """The same inputs as they enter the fold's consumers afterwards: divided by the factors."""
    inverse = np.float32(1) / scaling.factors[scaling.fold.source]
    squares: Array = statistics.squares * (inverse * inverse)
    outer = None if statistics.outer is None else statistics.outer * np.outer(inverse, inverse)
    return InputStatistics(statistics.n_tokens, squares, outer)


def choose_scaling(
    fold: Fold,
    tensors: Mapping[str, Tensor],
    statistics: InputStatistics | None,
    formats: Mapping[str, BlockFormat],
    method: Method,
    threads: RowThreads,
) -> ChannelScaling:
    """Choose for one fold by the statistics of its consumers' inputs; the rest is as of scale_channels."""
    quantized = [name for name in fold.consumers if name in formats and formats[name].n_elements > 1]
    obstacle = fold.obstacle or _obstacle(quantized, statistics)
    if obstacle or statistics is None:
        return ChannelScaling(fold, 0.0, 0.0, np.ones(fold.n_channels, np.float32), obstacle)
    if statistics.squares.shape != fold.source.shape:
        raise InvalidRequestError(
            f"{fold.consumers[0]} has {len(fold.source)} inputs, but the calibration has {statistics.n_in}; it belongs to another model"
        )
    samples = {name: _sample(tensors[name]) for name in quantized}
    inputs, method = _known(statistics, method, threads)
    magnitude = _magnitude(statistics, fold)

    def error(alpha: float) -> float:
        spread = _factors(magnitude, alpha)[fold.source]
        scaled, total = _scaled(inputs, spread), 0.0
        for name, weights in samples.items():
            with naming(name):
                matrix = quantize_matrix(weights * spread, formats[name], method, scaled, threads)
            total += matrix.error * matrix.energy
        return total

    errors = [error(alpha) for alpha in ALPHAS]
    best = int(np.argmin(errors))  # the first of equals: no scaling
    gain = 1 - errors[best] / errors[0] if best else 0.0
    return ChannelScaling(fold, ALPHAS[best], gain, _factors(magnitude, ALPHAS[best]))


def _known(statistics: InputStatistics, method: Method, threads: RowThreads) -> tuple[LinearInputs, Method]:
    """The inputs, and the method as far as they allow it."""
    n = np.float32(statistics.n_tokens)
    if statistics.outer is None:
        return LinearInputs(statistics.squares / n), replace(method, name="search" if method.name == "gptq" else method.name)
    if method.name == "gptq":
        return LinearInputs.of(statistics.outer / n, method.damping, threads), replace(method, n_sweeps=0)
    return LinearInputs(statistics.squares / n, statistics.outer / n), method


def _scaled(inputs: LinearInputs, spread: Array) -> LinearInputs:
    """Those of x / spread. The inverse of diag(1/s) H diag(1/s) is diag(s) inv(H) diag(s), so its factor is at hand."""
    hessian, factor = inputs.hessian, inputs.factor
    inverse: Array = np.float32(1) / spread
    return LinearInputs(
        inputs.squares * (inverse * inverse),
        None if hessian is None else hessian * np.outer(inverse, inverse),
        None if factor is None else replace(factor, upper=factor.upper * spread[factor.order]),
    )


def _obstacle(quantized: list[str], statistics: InputStatistics | None) -> str:
    if not quantized:
        return "none of the layers it feeds is quantized"
    if statistics is None:
        return f"the calibration knows nothing of the inputs of {quantized[0]}"
    return "" if statistics.squares.any() else f"the inputs of {quantized[0]} were all zero in the calibration"


def _sample(tensor: Tensor) -> Array:
    """Some rows of a matrix, evenly spread."""
    n_rows, n_in = tensor.shape
    rows = np.linspace(0, n_rows - 1, min(n_rows, _ROWS)).astype(np.int64)
    data = tensor.data.reshape(n_rows, -1)[rows]
    return tensor.format.dequantize(data.reshape(-1)).reshape(-1, n_in)


def _magnitude(statistics: InputStatistics, fold: Fold) -> NDArray[np.float64]:
    """Root mean square of each of the fold's channels, [n_channels], over all inputs that it is the source of; at least a floor."""
    squares = np.bincount(fold.source, statistics.squares) / np.bincount(fold.source)
    magnitude: NDArray[np.float64] = np.sqrt(np.maximum(squares, _FLOOR**2 * squares.max()))
    return magnitude


def _factors(magnitude: NDArray[np.float64], alpha: float) -> Array:
    powers = alpha * np.log(magnitude)
    factors: Array = np.exp(powers - powers.mean()).astype(np.float32)
    return factors
