"""A tensor tried in several block formats, by scale search: what error each leaves, and the tensor in the coarsest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.matrix import LinearInputs, Method, quantize_matrix
from edgelm.quant.model_file import Tensor
from edgelm.quant.row_threads import RowThreads

_WEIGHTS_AT_ONCE = 1 << 22
_SAMPLED_WEIGHTS = 1 << 18
_SEED = 5
_SEARCH = Method("search")


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes:
        errors: of every format that can hold the tensor.
        coarse: the tensor in the format of the greatest error; None where none can hold it.
    """

    errors: Mapping[BlockFormat, float]
    coarse: Tensor | None


@dataclass(frozen=True)
class FormatTrials:
    """Formats to try.

    Attributes:
        formats: of them, those whose blocks divide a tensor's rows are tried.
        threads: that search.
    """

    formats: Sequence[BlockFormat]
    threads: RowThreads

    def whole(self, tensor: Tensor, inputs: LinearInputs | None, error: Callable[[Tensor], float]) -> Trial:
        """Try a matrix [n_rows, n_in] in every format, and ask for the error of each result.

        Args:
            inputs: of the layer; None weighs all of them the same.

        Raises:
            InvalidRequestError: weights that are not finite, or too large for a format; the text names the tensor.
        """
        errors: dict[BlockFormat, float] = {}
        coarse = None
        for block_format in self._fitting(tensor):
            changed = self._searched(tensor, block_format, inputs)
            found = error(changed)
            if coarse is None or found > max(errors.values()):
                coarse = changed
            errors[block_format] = found
        return Trial(errors, coarse)

    def on_rows(self, tensor: Tensor, rows: NDArray[np.integer[Any]], inputs: LinearInputs | None) -> Trial:
        """As `whole`, but the error is that of the outputs on some rows: mean |(W - Q) x|^2 / mean |W x|^2.

        So a large matrix is searched whole in the coarse format only.

        Args:
            rows: to choose from; where there are many, a part of them is drawn.
        """
        drawn = np.random.default_rng(_SEED).permutation(rows)[: max(1, _SAMPLED_WEIGHTS // tensor.shape[1])]
        weights = _rows(tensor, np.sort(drawn))
        errors = {block_format: self._quantized(tensor.name, weights, block_format, inputs)[1] for block_format in self._fitting(tensor)}
        return Trial(errors, self._searched(tensor, max(errors, key=errors.__getitem__), inputs) if errors else None)

    def _fitting(self, tensor: Tensor) -> list[BlockFormat]:
        return [block_format for block_format in self.formats if tensor.shape[1] % block_format.n_elements == 0]

    def _searched(self, tensor: Tensor, block_format: BlockFormat, inputs: LinearInputs | None) -> Tensor:
        """The tensor in another format, some rows at a time."""
        n_rows, n_in = tensor.shape
        step = max(1, _WEIGHTS_AT_ONCE // n_in)
        pieces = (_rows(tensor, slice(start, start + step)) for start in range(0, n_rows, step))
        parts = [self._quantized(tensor.name, piece, block_format, inputs)[0] for piece in pieces]
        return Tensor(tensor.name, tensor.shape, block_format, np.concatenate(parts))

    def _quantized(
        self, name: str, weights: NDArray[np.float32], block_format: BlockFormat, inputs: LinearInputs | None
    ) -> tuple[NDArray[np.uint8], float]:
        """The blocks and their error."""
        try:
            matrix = quantize_matrix(weights, block_format, _SEARCH, inputs, self.threads)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{name}: {error}") from error
        return matrix.data, matrix.error


def _rows(tensor: Tensor, rows: NDArray[np.integer[Any]] | slice) -> NDArray[np.float32]:
    """Some rows of a matrix, [n, n_in]."""
    n_rows, n_in = tensor.shape
    data = tensor.data.reshape(n_rows, tensor.format.nbytes((n_in,)))[rows]
    return tensor.format.dequantize(data.reshape(-1)).reshape(-1, n_in)
