"""Input channels scaled before quantizing, as AWQ does (Lin et al. 2023, arXiv 2306.00978), with the inverse folded into what feeds them.

Columns of large inputs are multiplied, so that within their group of 32 they get more of the grid: for inputs of root mean square r,

    s_j = r_j^alpha / exp(mean log r^alpha),    W' = W diag(s),    x' = x / s,    error = sum over layers of mean |(Q(W') - W') x'|^2

and alpha is what leaves the least error, 0 (no scaling) among the candidates; Q is the method that will quantize the layers. GPTQ asks for
less scaling than a search, because it makes up for much of what scaling would save. AWQ takes mean |x| for r; the root mean square is what
the error weighs by, and what an importance matrix holds. The result is weights and norms of the same shapes: a plain file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.channel_folds import Fold
from edgelm.quant.input_statistics import InputStatistics
from edgelm.quant.matrix import LinearInputs, Method, naming, quantize_matrix
from edgelm.quant.model_file import Tensor
from edgelm.quant.row_threads import RowThreads

Array = NDArray[np.float32]
ALPHAS = (0.0, 0.2, 0.4, 0.6)
_FLOOR = 1e-3  # of the largest channel's root mean square: dead channels would be scaled without end
_ROWS = 192  # of each layer, evenly spread, that alpha is chosen on


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


def scale_model(
    tensors: Mapping[str, Tensor],
    folds: Iterable[Fold],
    groups: Iterable[tuple[tuple[str, ...], InputStatistics]],
    formats: Mapping[str, BlockFormat],
    method: Method,
    threads: RowThreads,
) -> Iterator[ChannelScaling]:
    """Choose for the folds whose inputs are known, in the order of the groups.

    Args:
        tensors: by GGUF name.
        groups: names of weights with one input, and its statistics, as quant/calibrate.py yields them; other names are passed over.
        formats: what the linear layers become.
        method: how they will be quantized.

    Raises:
        InvalidRequestError: as choose_scaling.
    """
    by_consumer = {fold.consumers[0]: fold for fold in folds}
    for names, statistics in groups:
        for fold in (by_consumer[name] for name in names if name in by_consumer):
            yield choose_scaling(fold, tensors, statistics, formats, method, threads)


def choose_scaling(
    fold: Fold,
    tensors: Mapping[str, Tensor],
    statistics: InputStatistics | None,
    formats: Mapping[str, BlockFormat],
    method: Method,
    threads: RowThreads,
) -> ChannelScaling:
    """Choose for one fold.

    Args:
        tensors: by GGUF name, those that the fold changes among them.
        statistics: of the consumers' inputs in the float model; None where they are not known.
        formats: what the linear layers become. Layers that are missing here, or become floats, have no say.
        method: how they will be quantized; its sweeps are left out. Where outer products are not known, search stands in for GPTQ.

    Raises:
        InvalidRequestError: weights that are not finite, or statistics of another width.
    """
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
        scaled, total = scaled_inputs(inputs, spread), 0.0
        for name, weights in samples.items():
            with naming(name):
                matrix = quantize_matrix(weights * spread, formats[name], method, scaled, threads)
            total += matrix.error * matrix.energy
        return total

    errors = {alpha: error(alpha) for alpha in ALPHAS}
    between = _lowest(errors)
    errors[between] = error(between)
    best = min(errors, key=lambda alpha: (errors[alpha], alpha))  # the least of equals: no scaling
    gain = 1 - errors[best] / errors[0.0] if best else 0.0
    return ChannelScaling(fold, best, gain, _factors(magnitude, best))


def _known(statistics: InputStatistics, method: Method, threads: RowThreads) -> tuple[LinearInputs, Method]:
    """The inputs, and the method as far as they allow it."""
    n = np.float32(statistics.n_tokens)
    if statistics.outer is None:
        return LinearInputs(statistics.squares / n), replace(method, name="search" if method.name == "gptq" else method.name)
    if method.name == "gptq":
        return LinearInputs.of(statistics.outer / n, method.damping, threads), replace(method, n_sweeps=0)
    return LinearInputs(statistics.squares / n, statistics.outer / n), method


def scaled_inputs(inputs: LinearInputs, spread: Array) -> LinearInputs:
    """Those of x / spread [n_in]. The inverse of diag(1/s) H diag(1/s) is diag(s) inv(H) diag(s), so its factor is at hand."""
    hessian, factor = inputs.hessian, inputs.factor
    inverse: Array = np.float32(1) / spread
    if hessian is not None:
        hessian = hessian * inverse
        hessian *= inverse[:, None]
    return LinearInputs(
        inputs.squares * (inverse * inverse),
        hessian,
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


def _lowest(errors: Mapping[float, float]) -> float:
    """Where the parabola through the least error and those beside it is lowest."""
    alphas, values = np.array(list(errors)), np.array(list(errors.values()))
    middle = int(np.clip(values.argmin(), 1, len(values) - 2))
    nearest = slice(middle - 1, middle + 2)
    curvature, slope, _ = np.polyfit(alphas[nearest], values[nearest], 2)
    return float(np.clip(-slope / (2 * curvature), alphas[0], alphas[-1])) if curvature > 0 else float(alphas[values.argmin()])


def _magnitude(statistics: InputStatistics, fold: Fold) -> NDArray[np.float64]:
    """Root mean square of each of the fold's channels, [n_channels], over all inputs that it is the source of; at least a floor."""
    squares = np.bincount(fold.source, statistics.squares) / np.bincount(fold.source)
    magnitude: NDArray[np.float64] = np.sqrt(np.maximum(squares, _FLOOR**2 * squares.max()))
    return magnitude


def _factors(magnitude: NDArray[np.float64], alpha: float) -> Array:
    powers = alpha * np.log(magnitude)
    factors: Array = np.exp(powers - powers.mean()).astype(np.float32)
    return factors
