"""The float32 forward pass as quant/evaluate.py wants it: all windows of a text, one block after the other.

An engine would unpack the weights once for every window; here each block is unpacked once for a batch of windows, and the products are
BLAS's, which makes this the quickest way to judge weights alone, without an engine's rounding of activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.block_steps import BlockSteps
from edgelm.backends.config import read_config
from edgelm.backends.reference import Array, softcap
from edgelm.backends.weights import read_tensors
from edgelm.errors import InvalidRequestError
from edgelm.quant.model_file import ModelFile
from edgelm.quant.row_threads import RowThreads

Tokens = NDArray[np.int32]
_BATCH_VALUES = 1 << 24  # of the widest state of a batch of windows: 64 MiB


class SteppedPredictor:
    """Implements Predictor for the windows it is made with.

    It holds their last hidden states, 4 n_embd bytes a token, and the output layer as float32, 4 n_vocab n_embd bytes.

    Args:
        file: the model; it must stay open.
        windows: int32 [n] each.
        name: for people.
        progress: called with a line before each block.
        n_threads: that compute.

    Raises:
        ModelFileError, UnsupportedModelError: as BlockSteps.
    """

    def __init__(self, file: ModelFile, windows: Sequence[Tokens], name: str, progress: Callable[[str], None], n_threads: int) -> None:
        self.name = name
        self._config = read_config(file.metadata)
        output = read_tensors(file, self._config).output
        self._output, self._bias = output.weight.dequantize(), None if output.bias is None else output.bias.dequantize()
        self.n_vocab = len(self._output)
        self._hidden: dict[bytes, Array] = {}
        for n in sorted({len(window) for window in windows}):
            some = [window for window in windows if len(window) == n]
            with RowThreads(n_threads) as threads:
                found = self._run(file, BlockSteps(file, n, threads), np.stack(some), progress)
            self._hidden.update((window[:-1].tobytes(), hidden[:-1]) for window, hidden in zip(some, found, strict=True))

    def _run(self, file: ModelFile, steps: BlockSteps, windows: Tokens, progress: Callable[[str], None]) -> Array:
        """The output layer's inputs, [n_windows, n, n_embd]."""
        widest = max(steps.config.n_ff, steps.config.n_embd, steps.config.n_heads * steps.config.head_dim)
        n_batch = max(1, _BATCH_VALUES // (widest * windows.shape[1]))
        stream = steps.embed(windows, {})
        for layer in range(steps.n_layers):
            progress(f"{self.name}: block {layer + 1} of {steps.n_layers}")
            for start in range(0, len(windows), n_batch):
                batch = slice(start, start + n_batch)
                state = steps.begin(layer, stream[batch], {})
                for step in steps.steps(layer, {}):
                    state = step(state)
                stream[batch] = state.stream
            file.drop_pages()
        return steps.end(stream).inputs

    def logits(self, tokens: Tokens, n_rows: int) -> Iterator[Array]:
        """Logits after each of a window's tokens but its last.

        Raises:
            InvalidRequestError: the tokens are no window that this was made with.
        """
        hidden = self._hidden.get(tokens.tobytes())
        if hidden is None:
            raise InvalidRequestError(f"{self.name} was made for other windows; make it with those that are to be predicted")
        for start in range(0, len(tokens), n_rows):
            y: Array = hidden[start : start + n_rows] @ self._output.T
            if self._bias is not None:
                y += self._bias
            yield softcap(y * np.float32(self._config.logit_scale), self._config.logit_softcap)
