"""The ranges are those of the reference forward pass over the same text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import write_variant

from edgelm.backends.config import read_config
from edgelm.backends.onnx.calibrate_ranges import calibrate_ranges
from edgelm.backends.onnx.export_static import StaticForm
from edgelm.backends.onnx.quantization import Ranges
from edgelm.backends.reference import ReferenceModel
from edgelm.backends.weights import read_tensors
from edgelm.errors import InvalidRequestError
from edgelm.quant.open_model import open_model

FORM = StaticForm(linear="gemm", norm="operator", opset=23)
TOKENS = np.random.default_rng(0).integers(0, 288, 104).astype(np.int32)
WINDOW, CHUNK = 48, 8

Calibrate = Callable[..., tuple[Ranges, ReferenceModel]]


@pytest.fixture
def calibrate(tmp_path: Path) -> Calibrate:
    """Ranges of a tiny model over tokens, and the model's reference."""

    def ranges(variant: str, tokens: NDArray[np.int32] = TOKENS, form: StaticForm = FORM) -> tuple[Ranges, ReferenceModel]:
        file = open_model(write_variant(tmp_path / f"{variant}.gguf", variant))
        config = read_config(file.metadata)
        found = calibrate_ranges(read_tensors(file, config), config, tokens, form, tmp_path, window=WINDOW, chunk=CHUNK)
        return found, ReferenceModel(file, WINDOW)

    return ranges


@pytest.mark.parametrize("variant", ["llama", "gemma3", "qwen2", "gemma2"])
def test_ranges_of_what_goes_in_and_out_are_the_references(variant: str, calibrate: Calibrate) -> None:
    ranges, reference = calibrate(variant)
    windows = [TOKENS[start : start + WINDOW] for start in range(0, len(TOKENS), WINDOW)]
    for name, compute in (("logits", reference.logits), ("hidden_states", reference.hidden)):
        values = np.concatenate([compute(window) for window in windows])
        assert (ranges[name].low, ranges[name].high) == pytest.approx((values.min(), values.max()), rel=1e-4)


def test_every_tensor_has_a_range(calibrate: Calibrate) -> None:
    ranges, _ = calibrate("llama")
    assert {"embedding", "layers.2.attention.scores", "layers.0.feed_forward.product", "new_key_values.1.key"} <= set(ranges)
    assert all(np.isfinite([span.low, span.high]).all() and span.low <= span.high for span in ranges.values())
    assert (ranges["layers.1.attention.probabilities"].low, ranges["layers.1.attention.probabilities"].high) == pytest.approx(
        (0, 1), abs=0.5
    )


def test_a_scaled_stream_has_scaled_ranges_and_the_same_logits(calibrate: Calibrate) -> None:
    plain, _ = calibrate("gemma3")
    scaled, _ = calibrate("gemma3", form=StaticForm(linear="gemm", norm="operator", opset=23, stream_scale=0.125))
    name = "layers.3.feed_forward.residual"
    assert scaled[name].high == pytest.approx(plain[name].high / 8, rel=1e-4)
    assert scaled["logits"].high == pytest.approx(plain["logits"].high, rel=1e-4)


def test_a_text_shorter_than_a_chunk_is_read_whole(calibrate: Calibrate) -> None:
    ranges, reference = calibrate("llama", TOKENS[:5])
    assert ranges["logits"].high == pytest.approx(reference.logits(TOKENS[:5]).max(), rel=1e-4)


def test_nothing_is_left_behind(calibrate: Calibrate, tmp_path: Path) -> None:
    calibrate("llama")
    assert [path.name for path in tmp_path.iterdir()] == ["llama.gguf"]


def test_texts_without_known_tokens_are_refused(calibrate: Calibrate) -> None:
    with pytest.raises(InvalidRequestError, match="has no tokens"):
        calibrate("llama", TOKENS[:0])
    with pytest.raises(InvalidRequestError, match="token 288 of the calibration text is not in the vocabulary of 288"):
        calibrate("llama", np.array([1, 288], np.int32))
