"""How exactly each block format holds a tensor: the error of the layer's outputs after a scale search, on some of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.matrix import LinearInputs, Method, quantize_matrix
from edgelm.quant.model_file import Tensor
from edgelm.quant.row_threads import RowThreads

_SAMPLED_WEIGHTS = 1 << 17
_WEIGHTS_AT_ONCE = 1 << 22
_SEARCH = Method("search")
_SEED = 5


@dataclass(frozen=True)
class Coarse:
    """A tensor in the format that holds it worst.

    Attributes:
        tensor: all of it.
        errors: of every format that can hold it, in parts of this one's.
    """

    tensor: Tensor
    errors: Mapping[BlockFormat, float]


def coarsest(tensor: Tensor, formats: Sequence[BlockFormat], inputs: LinearInputs | None, threads: RowThreads) -> Coarse | None:
    """The tensor in the one of the formats with the greatest error; None where its rows are whole blocks of none.

    Args:
        tensor: [n_rows, n_in].
        inputs: of the layer; None weighs all of them the same.

    Raises:
        InvalidRequestError: weights that are not finite or too large for a format; the text names the tensor.
    """
    fitting = [block_format for block_format in formats if tensor.shape[1] % block_format.n_elements == 0]
    if not fitting:
        return None
    try:
        errors = format_errors(tensor, fitting, inputs, threads)
        worst = max(fitting, key=errors.__getitem__)
        relative = {block_format: error / errors[worst] if error else 0.0 for block_format, error in errors.items()}
        return Coarse(_searched(tensor, worst, inputs, threads), relative)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{tensor.name}: {error}") from error


def format_errors(
    tensor: Tensor, formats: Sequence[BlockFormat], inputs: LinearInputs | None, threads: RowThreads
) -> dict[BlockFormat, float]:
    """Error of the outputs in each format, mean |(W - Q) x|^2 / mean |W x|^2 over rows drawn at random; arguments as `coarsest`."""
    n_rows, n_in = tensor.shape
    drawn = np.random.default_rng(_SEED).permutation(n_rows)[: max(1, _SAMPLED_WEIGHTS // n_in)]
    weights = _rows(tensor, np.sort(drawn))
    return {block_format: quantize_matrix(weights, block_format, _SEARCH, inputs, threads).error for block_format in formats}


def _searched(tensor: Tensor, block_format: BlockFormat, inputs: LinearInputs | None, threads: RowThreads) -> Tensor:
    """The tensor in another format, some rows at a time."""
    n_rows, n_in = tensor.shape
    step = max(1, _WEIGHTS_AT_ONCE // n_in)
    pieces = (_rows(tensor, slice(start, start + step)) for start in range(0, n_rows, step))
    parts = [quantize_matrix(piece, block_format, _SEARCH, inputs, threads).data for piece in pieces]
    return Tensor(tensor.name, tensor.shape, block_format, np.concatenate(parts))


def _rows(tensor: Tensor, rows: NDArray[np.int64] | slice) -> NDArray[np.float32]:
    """Some rows of a matrix, [n, n_in]."""
    n_rows, n_in = tensor.shape
    data = tensor.data.reshape(n_rows, tensor.format.nbytes((n_in,)))[rows]
    return tensor.format.dequantize(data.reshape(-1)).reshape(-1, n_in)
