"""The ONNX Runtime engine against the numpy reference, for every architecture, and what it refuses."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import VARIANTS, write_tiny, write_variant

from edgelm.backends.base import Chunk, Outputs
from edgelm.backends.onnx.engine import ONNXBackend
from edgelm.backends.onnx.export import ExportOptions, export_model
from edgelm.backends.onnx.options import ONNXOptions
from edgelm.backends.reference import ReferenceModel
from edgelm.backends.registry import open_backend
from edgelm.errors import BackendUnavailableError, ClosedError, InsufficientMemoryError, InvalidRequestError, ModelFileError
from edgelm.quant.exported_folder import MANIFEST, ExportedFolder
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.open_model import open_model

TOKENS = np.random.default_rng(5).integers(0, 288, 70).astype(np.int32)
Open = Callable[..., ONNXBackend]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama, exported for 64 tokens."""
    folder = tmp_path_factory.mktemp("model")
    model = write_tiny(folder / "llama.gguf", "llama", format="Q4_0")
    export_model(GGUFFile(model), folder / "exported", ExportOptions(n_ctx=64, precision="f32"))
    return folder / "exported"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "exported"))


@pytest.fixture
def open_engine() -> Iterator[Open]:
    opened: list[ONNXBackend] = []

    def open_one(path: Path, **arguments: object) -> ONNXBackend:
        opened.append(ONNXBackend(open_model(path), **{"n_threads": 2, **arguments}))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for backend in opened:
        backend.close()


def chunk(sequence: int, *tokens: int, outputs: Outputs = Outputs.LAST) -> Chunk:
    return Chunk(sequence, np.array(tokens, np.int32), outputs)


def relative_difference(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefill_and_decode_equal_the_reference(variant: str, tmp_path: Path, open_engine: Open) -> None:
    path = write_variant(tmp_path / "model.gguf", variant)
    wanted = ReferenceModel(GGUFFile(path), n_ctx=512).logits(TOKENS)
    backend = open_engine(path, n_ctx=512, precision="f32", cache_folder=tmp_path)
    assert relative_difference(backend.forward([Chunk(0, TOKENS, Outputs.ALL)]), wanted) < 1e-5
    step = np.concatenate([backend.forward([Chunk(1, TOKENS[i : i + 1])]) for i in range(len(TOKENS))])
    assert relative_difference(step, wanted) < 1e-5


def test_info(exported: Path, open_engine: Open) -> None:
    info = open_engine(exported).info
    assert (info.backend, info.architecture, info.n_vocab, info.n_embd, info.n_layers) == ("onnx", "llama", 288, 64, 3)
    assert (info.n_ctx, info.n_ctx_train, info.n_threads, info.precision) == (64, 512, 2, "f32")
    assert info.kv_bytes_per_token == 2 * 3 * 2 * 16 * 4
    assert info.weight_bytes > 0
    assert list(info.providers) == ["cpu"]
    assert info.providers["cpu"] > 20


def test_a_smaller_context(exported: Path, open_engine: Open) -> None:
    assert open_engine(exported, n_ctx=9).info.n_ctx == 9


WRONG = [
    ({"n_ctx": 65}, r"n_ctx is 65, but .* was exported for 64 tokens"),
    ({"precision": "int8"}, r"precision is 'int8', but .* was exported with 'f32'"),
    ({"options": ONNXOptions(qnn={"vtcm_mb": "8"})}, r"options of qnn were given, but the folder was exported for cpu and runs on cpu"),
]


@pytest.mark.parametrize(("arguments", "text"), WRONG)
def test_what_the_folder_was_not_exported_for(exported: Path, open_engine: Open, arguments: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        open_engine(exported, **arguments)


def test_a_provider_that_is_not_there(exported: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"'nnapi' cannot be used: only Android"):
        open_backend("onnx", exported, options={"providers": "nnapi,cpu"})


def set_format(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format": 99, "edgelm": "9.9"}))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def flip(folder: Path) -> None:
    graph = folder / "model.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)


DAMAGES = {
    "other version": (set_format, r"exported in layout 99 by edgelm 9.9"),
    "no manifest": (without(MANIFEST), r"exported"),
    "no graph": (without("model.onnx"), r"model.onnx: the file is missing"),
    "no data": (without("model.onnx.data"), r"model.onnx.data: the file is missing"),
    "data cut": (cut("model.onnx.data"), r"model.onnx.data: \d+ bytes, but \d+ were exported"),
    "graph of garbage": (flip, r"ONNX Runtime cannot open it"),
}


@pytest.mark.parametrize(("damage", "text"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_folders(folder: Path, damage: Callable[[Path], None], text: str) -> None:
    damage(folder)
    with pytest.raises(ModelFileError, match=text):
        open_backend("onnx", folder)


def test_any_model_is_exported_once(tmp_path: Path, open_engine: Open) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", "llama", format="Q4_0", n_ctx=128)
    lines: list[str] = []
    first = open_engine(model, cache_folder=tmp_path, progress=lines.append)
    assert any("exporting tiny.gguf to ONNX" in line for line in lines)
    assert (first.info.n_ctx, first.info.precision) == (128, "int8")
    lines.clear()
    again = open_engine(model, cache_folder=tmp_path, progress=lines.append, n_ctx=32)
    assert lines == []
    assert again.info.n_ctx == 32
    np.testing.assert_array_equal(first.forward([chunk(0, 5, 6)]), again.forward([chunk(0, 5, 6)]))
    assert open_engine(model, cache_folder=tmp_path, n_ctx=200).info.n_ctx == 200  # more than it was trained for: exported anew
    assert len(list((tmp_path / "onnx").iterdir())) == 2


def test_a_batch_that_fails_appends_nothing(exported: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_engine(exported)
    wanted = open_engine(exported).forward([chunk(1, 5, 6, 7, 8)])
    backend.forward([chunk(1, 5, 6)])
    with monkeypatch.context() as patch:
        patch.setattr("edgelm.backends.memory.available_memory", lambda: 0)
        with pytest.raises(InsufficientMemoryError):
            backend.forward([chunk(1, 7), chunk(2, 5)])
        with pytest.raises(InsufficientMemoryError):
            backend.share(1, 3, 2)
    assert [backend.length(sequence) for sequence in (1, 2, 3)] == [2, 0, 0]
    assert len(backend._slots) == 1
    np.testing.assert_allclose(backend.forward([chunk(1, 7, 8)]), wanted, rtol=1e-4, atol=1e-5)


def test_profile(exported: Path, tmp_path: Path) -> None:
    backend = ONNXBackend(ExportedFolder(exported), options=ONNXOptions(profile=str(tmp_path / "profile")))
    backend.forward([chunk(0, 5)])
    backend.close()
    events = json.loads(next(tmp_path.glob("profile*.json")).read_text())
    assert any(event.get("args", {}).get("op_name") == "GroupQueryAttention" for event in events)


def test_a_profile_that_nobody_could_find(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no folder"):
        ONNXOptions(profile=str(tmp_path / "missing" / "profile"))


def test_hidden_states(exported: Path, open_engine: Open) -> None:
    model = exported.parent / "llama.gguf"
    wanted = ReferenceModel(GGUFFile(model)).hidden(TOKENS[:9])
    assert relative_difference(open_engine(exported).hidden([Chunk(0, TOKENS[:9], Outputs.ALL)]), wanted) < 1e-4


def test_a_closed_model(exported: Path, open_engine: Open) -> None:
    backend = open_engine(exported)
    backend.close()
    backend.close()
    for call in (lambda: backend.forward([chunk(1, 5)]), lambda: backend.share(1, 2, 0), lambda: backend.truncate(1, 0)):
        with pytest.raises(ClosedError):
            call()


def _forward_in_a_fork(backend: ONNXBackend, connection: object) -> None:
    try:
        backend.forward([chunk(1, 5)])
    except BackendUnavailableError as error:
        connection.send(str(error))  # type: ignore[attr-defined]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_process_is_told(exported: Path, open_engine: Open) -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_forward_in_a_fork, args=(open_engine(exported), there))
    process.start()
    assert here.poll(20)
    assert "open it anew in this process" in here.recv()
    process.join()
