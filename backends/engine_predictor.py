"""An engine as quant/evaluate.py wants it: logits of a text's windows, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import Backend, Chunk, Outputs

_SEQUENCE = 0


class EnginePredictor:
    """Implements Predictor. The engine's sequence 0 is forgotten when a window begins.

    Args:
        engine: it stays its opener's to close.
        name: for people; None for the engine's and its precision.
    """

    def __init__(self, engine: Backend, name: str | None = None) -> None:
        self._engine = engine
        self.name = name or f"{engine.info.backend} {engine.info.precision}"
        self.n_vocab = engine.info.n_vocab

    def logits(self, tokens: NDArray[np.int32], n_rows: int) -> Iterator[NDArray[np.float32]]:
        """Logits after each of the tokens, float32 [n_rows, n_vocab] at a time; errors are those of Backend.forward."""
        self._engine.free(_SEQUENCE)
        for start in range(0, len(tokens), n_rows):
            yield self._engine.forward([Chunk(_SEQUENCE, tokens[start : start + n_rows], Outputs.ALL)])
