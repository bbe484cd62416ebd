"""Windows of a calibration text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_model import byte_metadata

from edgelm.backends.config import read_config
from edgelm.errors import InvalidRequestError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.runtime.calibration_windows import WINDOW, batch_size, calibration_windows
from edgelm.runtime.tokenizer import Tokenizer

ARCHITECTURE = {"general.architecture": "llama"}


def windows(path: Path, n_tokens: int, **changes: Any) -> tuple[Any, list[str], Tokenizer]:
    metadata = {**byte_metadata(), **ARCHITECTURE, **changes}
    notes: list[str] = []
    return calibration_windows(metadata, path, n_tokens, notes), notes, Tokenizer.from_metadata(metadata)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """20,000 tokens, by which one sees where in the text they stand."""
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(97 + i // 1000) for i in range(20_000)))
    return path


def test_windows_come_from_all_over_the_text(text: Path) -> None:
    found, notes, tokenizer = windows(text, 4 * WINDOW, **{"tokenizer.ggml.add_bos_token": False})
    assert (found.shape, found.dtype, notes) == ((4, WINDOW), np.int32, [])
    letters = [tokenizer.decode(list(window))[0] for window in found]
    assert letters == sorted(letters)
    assert letters[0] == "a"
    assert letters[-1] == "t"


def test_each_window_begins_with_the_beginning_token(text: Path) -> None:
    found, _, tokenizer = windows(text, 2 * WINDOW, **{"tokenizer.ggml.add_bos_token": True})
    assert found.shape == (2, WINDOW)
    assert (found[:, 0] == tokenizer.bos_id).all()
    assert tokenizer.decode([int(token) for token in found[0, 1:]]) == "a" * (WINDOW - 1)


def test_a_model_of_little_context_gets_short_windows(text: Path) -> None:
    found, _, _ = windows(text, 4 * WINDOW, **{"llama.context_length": 128})
    assert found.shape == (16, 128)


def test_less_text_than_was_asked_for_is_said_aloud(text: Path) -> None:
    content = text.read_text()
    for n, shape, n_notes in ((300, (1, 300), 1), (1300, (2, WINDOW), 1), (20_000, (39, WINDOW), 0)):
        text.write_text(content[:n])
        found, notes, _ = windows(text, 39 * WINDOW, **{"tokenizer.ggml.add_bos_token": False})
        assert found.shape == shape
        assert len(notes) == n_notes
        assert all(
            note == f"calibrated on all {found.size:,} tokens that fill whole windows of the text; 19,968 were asked for" for note in notes
        )


def test_texts_of_no_use(text: Path) -> None:
    for content, complaint in ((b"", "has 0 tokens; give 256 at least"), (b"a" * 200, "give 256"), (b"\xff" * 999, "in UTF-8")):
        text.write_bytes(content)
        with pytest.raises(InvalidRequestError, match=complaint):
            windows(text, WINDOW)
    with text.open("wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(InvalidRequestError, match="has 200 MB, of which few would be used; give 100 MB at the most"):
        windows(text, WINDOW)
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        windows(text.parent, WINDOW)


def test_batches_of_wide_models_are_small_and_all_of_one_size(tmp_path: Path) -> None:
    from tiny_models import write_tiny

    sizes = []
    for n_ff in (64, 4096):
        with GGUFFile(write_tiny(tmp_path / f"{n_ff}.gguf", "llama", n_layers=1, n_ff=n_ff)) as file:
            sizes.append(batch_size(read_config(file.metadata), np.zeros((9, 512), np.int32)))
    assert sizes == [9, 5]  # 8 at once would be possible; 5 and 4 keep two threads busier than 8 and 1
