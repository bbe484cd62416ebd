from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest

from edgelm.backends.base import Chunk, Outputs
from edgelm.backends.config import read_config
from edgelm.backends.registry import open_backend
from edgelm.backends.weights import read_tensors
from edgelm.bench import shapes
from edgelm.bench.llamacpp_peer import LlamaCppPeer
from edgelm.bench.shapes import SHAPES, cached_shape, shape_metadata, tensor_sizes, write_shape
from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.gguf_file import GGUFFile


@pytest.fixture
def short_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shape with two layers and a small vocabulary, so that a file takes tens of megabytes at most."""
    monkeypatch.setattr(shapes, "SHAPES", {name: replace(shape, n_layers=2, n_vocab=512) for name, shape in SHAPES.items()})


@pytest.mark.usefixtures("short_shapes")
@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        ("smollm2-360m", "q4_1"),
        ("tinyllama-1.1b", "Q4_K"),
        ("qwen2.5-0.5b", "Q4_0"),
        ("qwen3-0.6b", "Q5_K"),
        ("llama-3.2-1b", "Q8_0"),
        ("gemma-3-270m", "Q4_1"),
        ("gemma-3-1b", "Q4_0"),
        ("phi-3-mini", "q4_0"),
    ],
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
    [
        ("gpt-5", "Q4_0", "llama-2-7b"),
        ("llama-2-7b", "Q4_9", "Q4_K"),
        ("qwen2.5-0.5b", "Q4_K", "896"),
        ("gemma-3-270m", "q4_k", "640"),
    ],
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


# Each was found in public repositories that print what a model's file says (general.parameter_count, n_params, numel) or what the hub's API
# says; a tied output layer counts once, and gemma-3-4b is without its image encoder.
PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_099_328,
    "phi-3-mini": 3_821_079_552,
}


def test_float_shapes_are_float_throughout() -> None:
    assert {size.format.name for size in tensor_sizes("smollm2-135m", "F16")} == {"F16", "F32"}
    assert {size.format.name for size in tensor_sizes("llama-3.2-1b", "Q4_0")} == {"Q4_0", "Q6_K", "F32"}


def test_shapes_have_the_published_numbers_of_parameters() -> None:
    counted = {name: sum(prod(size.shape) for size in tensor_sizes(name)) for name in SHAPES}
    assert counted == PARAMETERS


@pytest.mark.parametrize(("name", "fixture"), [("smollm2-135m", "smollm2_path"), ("gemma-3-270m", "gemma3_path")])
def test_shapes_are_those_of_the_real_files(name: str, fixture: str, request: pytest.FixtureRequest) -> None:
    with GGUFFile(request.getfixturevalue(fixture)) as file:
        real = read_config(file.metadata)
        sizes = {tensor.name: tensor.shape for tensor in file.tensors.values()}
    assert {size.name: size.shape for size in tensor_sizes(name)} == sizes
    ours = read_config(shape_metadata(name))
    ignored = {"n_ctx_train": 0, "norm_eps": 0.0}
    scales = {"rope": replace(real.rope, original_context=0), "local_rope": replace(real.local_rope, original_context=0)}
    theirs = {"rope": replace(ours.rope, original_context=0), "local_rope": replace(ours.local_rope, original_context=0)}
    assert replace(ours, **ignored, **theirs) == replace(real, **ignored, **scales)


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m"])
def test_logits_of_a_model_of_full_depth_stay_finite(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "SHAPES", {name: replace(SHAPES[name], n_vocab=512)})
    write_shape(tmp_path / "m.gguf", name, "q4_0")
    backend = open_backend("cpu", tmp_path / "m.gguf", n_threads=1, n_ctx=64)
    logits = backend.forward([Chunk(0, np.arange(300, 340, dtype=np.int32), Outputs.ALL)])
    backend.close()
    assert np.isfinite(logits).all()
    assert 0.3 < logits.std() < 3.0


@pytest.mark.usefixtures("short_shapes")
def test_a_cached_shape_is_written_once(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "shapes"
    path = cached_shape("smollm2-135m", "q4_0", folder)
    written = path.stat().st_mtime_ns
    assert path.name == "smollm2-135m-Q4_0.gguf"
    assert cached_shape("smollm2-135m", "Q4_0", folder) == path
    assert path.stat().st_mtime_ns == written
    assert [file.name for file in folder.iterdir()] == [path.name]


@pytest.mark.usefixtures("short_shapes")
@pytest.mark.parametrize("damage", ["half", "empty", "other format", "older shape"])
def test_a_file_that_is_not_whole_is_written_anew(tmp_path: Path, damage: str) -> None:
    path = cached_shape("smollm2-135m", "q4_0", tmp_path)
    whole = path.read_bytes()
    if damage == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other format":
        write_shape(path, "smollm2-135m", "Q8_0")
    else:
        path.write_bytes(whole.replace(b"blk.1.", b"blk.9."))
    assert cached_shape("smollm2-135m", "q4_0", tmp_path).read_bytes() == whole


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="file"):
        cached_shape("smollm2-135m", "q4_0", tmp_path / "file" / "shapes")
