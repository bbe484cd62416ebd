from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.engine_predictor import EnginePredictor
from edgelm.backends.scripted import ScriptedBackend
from edgelm.quant.evaluate import evaluate


def counting(history: Sequence[int]) -> NDArray[np.float32]:
    """The likeliest next token is the number of tokens so far."""
    return 5 * np.eye(8, dtype=np.float32)[len(history)]


def test_logits_come_in_pieces_after_each_token() -> None:
    predictor = EnginePredictor(ScriptedBackend(counting, n_vocab=8))
    assert (predictor.name, predictor.n_vocab) == ("scripted f32", 8)
    pieces = list(predictor.logits(np.array([3, 3, 3, 3, 3], np.int32), 2))
    assert [piece.shape for piece in pieces] == [(2, 8), (2, 8), (1, 8)]
    assert np.concatenate(pieces).argmax(axis=1).tolist() == [1, 2, 3, 4, 5]


def test_every_window_begins_an_empty_context() -> None:
    lengths: list[int] = []

    def script(history: Sequence[int]) -> NDArray[np.float32]:
        lengths.append(len(history))
        return np.zeros(8, np.float32)

    windows = [np.array([0, 1, 2], np.int32)] * 2
    reference, candidate = ScriptedBackend(counting, n_vocab=8), ScriptedBackend(script, n_vocab=8)
    evaluate(EnginePredictor(reference), [EnginePredictor(candidate)], windows, lambda _: None)
    assert lengths == [1, 2, 1, 2]
