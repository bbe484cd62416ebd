"""What calibration remembers of the vectors that enter each linear layer: how large each input is, and how inputs go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.row_threads import RowThreads

# Rows of the outer product that are computed at a time: beside the sum itself, memory holds one such strip for each thread.
_STRIP = 128


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Sums over the vectors x [n_in] that entered a linear layer.

    Attributes:
        n_tokens: how many vectors; divide the sums by it for means.
        squares: float32 [n_in], the sum of x_i^2.
        outer: float32 [n_in, n_in], the sum of x x^T, symmetric, with `squares` as its diagonal; None where it was not kept.

    Raises:
        InvalidRequestError: a shape, a type or a value that such sums cannot have.
    """

    n_tokens: int
    squares: NDArray[np.float32]
    outer: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.n_tokens < 0:
            raise InvalidRequestError(f"input statistics over {self.n_tokens} tokens make no sense; the number must not be negative")
        if self.squares.ndim != 1 or self.squares.size == 0 or self.squares.dtype != np.float32:
            raise InvalidRequestError(f"the squares are {_described(self.squares)}; give float32 [n_in]")
        if not np.isfinite(self.squares).all() or self.squares.min() < 0:
            raise InvalidRequestError("sums of squares must be finite and not negative; the inputs were damaged, or overflowed float32")
        if self.n_tokens == 0 and self.squares.any():
            raise InvalidRequestError("there are sums of squares, but over no tokens at all; the statistics were damaged")
        if self.outer is not None:
            _check_outer(self.outer, self.squares)

    @property
    def n_in(self) -> int:
        """Width of the inputs."""
        return int(self.squares.size)


# By the GGUF name of the weight ("blk.0.attn_q.weight"). Weights with the same input (q, k and v; gate and up) may share one object.
Calibration = Mapping[str, InputStatistics]


class InputAccumulator:
    """Sums up the inputs of one linear layer, block by block.

    Squares are summed in float64, outer products in float32 by BLAS, strip by strip, on and above the diagonal.

    Args:
        name: of the weight, for messages.
        n_in: width of the inputs.
        outer: keep the full outer product, 4 n_in^2 bytes.
        threads: that compute outer products; None for BLAS's own.
    """

    def __init__(self, name: str, n_in: int, outer: bool = True, threads: RowThreads | None = None) -> None:
        if n_in < 1:
            raise InvalidRequestError(f"{name} cannot have inputs of width {n_in}; give 1 or more")
        self._name = name
        self._n_tokens = 0
        self._squares = np.zeros(n_in, np.float64)
        self._outer = np.zeros((n_in, n_in), np.float32) if outer else None
        self._threads = threads
        self._finished = False

    def add(self, x: NDArray[np.float32]) -> None:
        """Add the inputs of n tokens, float32 [n, n_in].

        Raises:
            InvalidRequestError: another shape or type, values that are not finite, or the sums were finished already.
        """
        n_in = self._squares.size
        if self._finished:
            raise InvalidRequestError(f"the input statistics of {self._name} are finished; start new ones for further inputs")
        if x.ndim != 2 or x.shape[1] != n_in or x.dtype != np.float32:
            raise InvalidRequestError(f"the inputs of {self._name} are {_described(x)}; give float32 [n_tokens, {n_in}]")
        squares = np.einsum("ti,ti->i", x, x, dtype=np.float64)
        if not np.isfinite(squares).all():
            raise InvalidRequestError(f"the inputs of {self._name} are not finite; this layer's inputs come from damaged weights before it")
        self._n_tokens += len(x)
        self._squares += squares
        if self._outer is not None:
            add_products(self._outer, x, x, self._threads, is_symmetric=True)

    def finish(self) -> InputStatistics:
        """The sums; nothing can be added afterwards, for a large outer product is handed over, not copied.

        Raises:
            InvalidRequestError: the sums overflowed float32.
        """
        self._finished = True
        if self._squares.max() > np.finfo(np.float32).max:
            raise InvalidRequestError(f"the squared inputs of {self._name} overflowed float32; the weights before it are damaged")
        squares = self._squares.astype(np.float32)
        if self._outer is not None:
            for strip, after in _strips(squares.size):
                self._outer[strip, strip] = np.triu(self._outer[strip, strip]) + np.triu(self._outer[strip, strip], 1).T
                self._outer[after, strip] = self._outer[strip, after].T
            np.fill_diagonal(self._outer, squares)
        return InputStatistics(self._n_tokens, squares, self._outer)


def add_products(
    total: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32], threads: RowThreads | None, is_symmetric: bool = False
) -> None:
    """total [n_x, n_y] += x^T y, of x [n, n_x] and y [n, n_y], strip by strip; where symmetric, only on and above the diagonal."""

    def add(strip: slice) -> None:
        after = slice(strip.start if is_symmetric else 0, None)
        total[strip, after] += x[:, strip].T @ y[:, after]

    (threads or RowThreads(1)).run(add, len(total), _STRIP)


def _strips(n_in: int) -> Iterator[tuple[slice, slice]]:
    """Every strip of rows, and what lies after it."""
    for start in range(0, n_in, _STRIP):
        end = min(start + _STRIP, n_in)
        yield slice(start, end), slice(end, n_in)


def _check_outer(outer: NDArray[np.float32], squares: NDArray[np.float32]) -> None:
    n_in = squares.size
    if outer.shape != (n_in, n_in) or outer.dtype != np.float32:
        raise InvalidRequestError(f"the outer products are {_described(outer)}; give float32 [{n_in}, {n_in}]")
    if not np.isfinite((outer.min(), outer.max())).all():
        raise InvalidRequestError("sums of outer products must be finite; the inputs were damaged, or overflowed float32")
    if not np.array_equal(outer.diagonal(), squares):
        raise InvalidRequestError("the diagonal of the outer products is not the sum of squares; they belong to different inputs")
    if not all(np.array_equal(outer[strip, strip.start :], outer[strip.start :, strip].T) for strip, _ in _strips(n_in)):
        raise InvalidRequestError("the outer products are not symmetric; they were damaged")


def _described(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} {list(array.shape)}"
