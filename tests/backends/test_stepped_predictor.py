"""The forward pass by blocks over all windows at once predicts what the reference does, window by window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_variant

from edgelm.backends import stepped_predictor
from edgelm.backends.reference import ReferenceModel
from edgelm.backends.stepped_predictor import SteppedPredictor
from edgelm.errors import InvalidRequestError
from edgelm.quant.gguf_file import GGUFFile


@pytest.mark.parametrize("variant", ["llama-biases", "gemma3", "phi3"])
@pytest.mark.parametrize("values_at_once", [1, 1 << 24])
def test_windows_of_several_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, values_at_once: int) -> None:
    monkeypatch.setattr(stepped_predictor, "_BATCH_VALUES", values_at_once)
    rng = np.random.default_rng(1)
    windows = [rng.integers(3, 280, n).astype(np.int32) for n in (40, 24, 40)]
    said: list[str] = []
    with GGUFFile(write_variant(tmp_path / "m.gguf", variant)) as file:
        predictor = SteppedPredictor(file, windows, "tiny", said.append, 2)
        for window in windows:
            found = np.concatenate(list(predictor.logits(window[:-1], 7)))
            wanted = ReferenceModel(file).logits(window[:-1])
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
        with pytest.raises(InvalidRequestError, match="tiny was made for other windows"):
            next(predictor.logits(windows[0][1:], 7))
    assert predictor.n_vocab == found.shape[1]
    assert said[0].startswith("tiny: block 1 of ")
