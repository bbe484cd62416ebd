"""KL divergence of whole predictions from the inputs of the output layer, without ever holding all logits.

For logits x of the reference, p = softmax(x), and y of another model, with d = y - x,

    KL = ln sum_v p_v e^{d_v} - sum_v p_v d_v = ln(1 + s + m) - m,    m = sum_v p_v d_v,    s = sum_v p_v (e^{d_v} - 1 - d_v)

in which m and s add up over pieces of the vocabulary. No term of s is negative, and where the d are small nothing large cancels: even tiny
divergences are exact in float32. Every piece of the output layer is decoded once for each model that is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import MeasurementError
from edgelm.quant.model_file import Tensor

Array = NDArray[np.float32]
Doubles = NDArray[np.float64]
Replaced = Mapping[str, Tensor]

_VALUES_AT_ONCE = 1 << 22  # logits of a piece, 16 MiB


class OutputLayer(Protocol):
    """The last part of a model; backends/block_steps.py has one."""

    @property
    def n_vocab(self) -> int: ...

    def logits(self, inputs: Array, tokens: slice, replaced: Replaced) -> Array:
        """Logits [..., n] of a range of n tokens of the vocabulary, from the output layer's inputs [..., n_embd]."""
        ...


def piecewise_divergence(
    output: OutputLayer, reference: Array, others: Sequence[Callable[[], tuple[Array, Replaced]]], say: Callable[[int, int], None]
) -> Doubles:
    """KL(reference || other) at each position, float64 [n_others, n], in nats.

    Args:
        output: turns inputs into logits.
        reference: the reference's inputs, [n, n_embd].
        others: give the others' inputs, of the same shape, and what stands in for the output layer's weight; called for every piece.
        say: told how many pieces of how many are done.

    Raises:
        MeasurementError: a divergence is no finite number.
    """
    log_sum = _log_sum(output, reference)
    mean, second = np.zeros((2, len(others), len(reference)))
    pieces = list(_pieces(output, len(reference)))
    for done, piece in enumerate(pieces):
        say(done, len(pieces))
        x = output.logits(reference, piece, {})
        p = np.exp(x - log_sum[:, None].astype(np.float32))
        for i, other in enumerate(others):
            inputs, replaced = other()
            d = output.logits(inputs, piece, replaced) - x
            with np.errstate(over="ignore", invalid="ignore"):  # reported below
                mean[i] += np.einsum("tv,tv->t", p, d)
                second[i] += np.einsum("tv,tv->t", p, np.exp(d) - 1 - d)
    with np.errstate(invalid="ignore"):
        kl: Doubles = np.log1p(second + mean) - mean
    if not np.isfinite(kl).all():
        raise MeasurementError("the logits of a model with quantized tensors are no numbers; the source is damaged, fetch it again")
    return np.maximum(kl, 0.0)  # rounding may leave a tiny negative one


def _log_sum(output: OutputLayer, inputs: Array) -> Doubles:
    """ln sum_v exp(x_v) of each position, float64 [n]."""
    highest, total = np.full(len(inputs), -np.inf), np.zeros(len(inputs))
    for piece in _pieces(output, len(inputs)):
        x = output.logits(inputs, piece, {})
        before, highest = highest, np.maximum(highest, x.max(axis=1))
        total = total * np.exp(before - highest) + np.exp(x - highest[:, None].astype(np.float32)).sum(axis=1, dtype=np.float64)
    result: Doubles = highest + np.log(total)
    return result


def _pieces(output: OutputLayer, n: int) -> Iterator[slice]:
    step = max(1, _VALUES_AT_ONCE // n)
    return (slice(start, min(start + step, output.n_vocab)) for start in range(0, output.n_vocab, step))
