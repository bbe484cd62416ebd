from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgelm.backends.config import read_config
from edgelm.backends.weights import read_tensors
from edgelm.bench import shapes
from edgelm.bench.llamacpp_peer import LlamaCppPeer
from edgelm.bench.shapes import SHAPES, write_shape
from edgelm.errors import InvalidRequestError
from edgelm.quant.gguf_file import GGUFFile


@pytest.fixture
def short_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shape with two layers and a small vocabulary, so that a file takes tens of megabytes at most."""
    monkeypatch.setattr(shapes, "SHAPES", {name: replace(shape, n_layers=2, n_vocab=512) for name, shape in SHAPES.items()})


@pytest.mark.usefixtures("short_shapes")
@pytest.mark.parametrize(
    ("name", "format_name"),
    [("smollm2-360m", "q4_1"), ("tinyllama-1.1b", "Q4_K"), ("qwen2.5-0.5b", "Q4_0"), ("qwen3-0.6b", "Q5_K"), ("llama-3.2-1b", "Q8_0")],
)
def test_edgelm_and_llamacpp_run_the_file(tmp_path: Path, name: str, format_name: str) -> None:
    path = tmp_path / "m.gguf"
    write_shape(path, name, format_name)
    with GGUFFile(path) as file:
        config = read_config(file.metadata)
        tensors = read_tensors(file, config)
        assert (config.n_embd, config.n_ff, config.head_dim) == (SHAPES[name].n_embd, SHAPES[name].n_ff, SHAPES[name].head_dim)
        assert tensors.layers[0].gate.weight.format.name == format_name.upper()
    peer = LlamaCppPeer(path, 1, n_ctx=64)
    logits = peer.logits(range(300, 310))
    peer.close()
    assert 0.3 < logits.std() < 3.0  # weights of a plausible size neither vanish nor explode


@pytest.mark.parametrize(
    ("name", "format_name", "message"),
    [("gpt-5", "Q4_0", "llama-2-7b"), ("llama-2-7b", "Q4_9", "Q4_K"), ("qwen2.5-0.5b", "Q4_K", "896")],
)
def test_what_cannot_be_written_is_said(tmp_path: Path, name: str, format_name: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        write_shape(tmp_path / "m.gguf", name, format_name)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("short_shapes")
def test_the_same_seed_writes_the_same_file(tmp_path: Path) -> None:
    for path, seed in ((tmp_path / "a", 1), (tmp_path / "b", 1), (tmp_path / "c", 2)):
        write_shape(path, "qwen3-0.6b", "Q4_0", seed)
    first, same, other = (np.fromfile(tmp_path / name, np.uint8) for name in "abc")
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
