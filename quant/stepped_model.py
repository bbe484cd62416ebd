"""A model that runs over text step by step, so that one sees, and may change, what lies between the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.quant.model_file import Tensor

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class State:
    """Of some windows of text within a block.

    Attributes:
        stream: the residual stream, float32 [n_windows, n, n_embd].
        inputs: what enters the next linear layers, float32 [n_windows, n, n_in].
    """

    stream: Array
    inputs: Array


Step = Callable[[State], State]


class SteppedModel(Protocol):
    """The float32 forward pass of a model in steps; backends/block_steps.py is one."""

    @property
    def n_layers(self) -> int: ...

    def linear_groups(self, layer: int) -> tuple[tuple[str, ...], ...]:
        """GGUF names of the weights that the states' inputs enter, one group before each of a block's steps."""
        ...

    def embed(self, windows: Tokens, replaced: Mapping[str, Tensor]) -> Array:
        """The stream before the first block, [n_windows, n, n_embd], of tokens [n_windows, n]."""
        ...

    def begin(self, layer: int, stream: Array, replaced: Mapping[str, Tensor]) -> State:
        """The state before the first step of a block."""
        ...

    def steps(self, layer: int, replaced: Mapping[str, Tensor]) -> tuple[Step, ...]:
        """A block's steps. `replaced`: tensors that stand in for the model's own, by name; looked at when a step runs."""
        ...

    def end(self, stream: Array) -> State:
        """The state after the last step of the last block, with the output layer's inputs, of the stream after it."""
        ...
