"""The folder that an export leaves, and what is said of one that is not whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelm.errors import ModelFileError
from edgelm.quant.exported_folder import ExportedFolder, GraphFile, Manifest, write_manifest, write_metadata
from edgelm.quant.open_model import open_model

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 0.5,
    "tokenizer.ggml.tokens": ["a", "Ġb"],
    "tokenizer.ggml.scores": np.array([0.5, -1], np.float32),
    "tokenizer.ggml.add_bos_token": False,
}
DETAILS = {"soc": "x", "scales": {"logits": 0.5}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_metadata(tmp_path, METADATA)
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "model.data").write_bytes(b"weights")
    graphs = (GraphFile("model.onnx", 32),)
    write_manifest(tmp_path, Manifest("qnn", 256, "uint16", "uint8", graphs, DETAILS))
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "edgelm.json").read_text())
    change(manifest)
    (folder / "edgelm.json").write_text(json.dumps(manifest))


def test_what_was_written_is_read_back(folder: Path) -> None:
    model = open_model(folder)
    assert isinstance(model, ExportedFolder)
    manifest = model.manifest
    assert (manifest.target, manifest.n_ctx, manifest.precision, manifest.kv_type) == ("qnn", 256, "uint16", "uint8")
    assert manifest.graphs == (GraphFile("model.onnx", 32),)
    assert manifest.details == DETAILS
    assert {name: size for name, size in manifest.files.items() if name != "metadata.gguf"} == {"model.onnx": 5, "model.data": 7}
    assert model.tensors == {}
    np.testing.assert_array_equal(model.metadata["tokenizer.ggml.scores"], METADATA["tokenizer.ggml.scores"])
    assert {key: value for key, value in model.metadata.items() if not key.endswith("scores")} == {
        key: value for key, value in METADATA.items() if not key.endswith("scores")
    }


def test_a_tokenizer_json_is_the_folders_own(tmp_path: Path) -> None:
    write_metadata(tmp_path, {"edgelm.tokenizer.json": "/elsewhere/tokenizer.json"})
    (tmp_path / "model.onnx").write_bytes(b"graph")
    write_manifest(tmp_path, Manifest("cpu", 8, "f32", "f32", (GraphFile("model.onnx"),)))
    assert ExportedFolder(tmp_path).metadata["edgelm.tokenizer.json"] == str(tmp_path / "tokenizer.json")


def test_a_missing_or_changed_file_is_named(folder: Path) -> None:
    (folder / "model.data").write_bytes(b"weight")
    with pytest.raises(ModelFileError, match=r"model\.data: 6 bytes, but 7 were exported; export or copy"):
        open_model(folder)
    (folder / "model.data").unlink()
    with pytest.raises(ModelFileError, match=r"model\.data: the file is missing"):
        open_model(folder)


def test_a_folder_without_manifest_is_incomplete(folder: Path) -> None:
    (folder / "edgelm.json").unlink()
    with pytest.raises(ModelFileError, match=r"edgelm\.json: no such file; the folder is incomplete"):
        open_model(folder)


def test_another_version_is_named(folder: Path) -> None:
    rewrite(folder, lambda manifest: manifest.update(format=99, edgelm="7.0"))
    with pytest.raises(ModelFileError, match=r"exported in layout 99 by edgelm 7\.0.*reads layout 1; export the model again"):
        open_model(folder)


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "target": lambda m: m.update(target="tpu"),
    "graphs is no list": lambda m: m.update(graphs={}),
    "graphs": lambda m: m.update(graphs=[]),
    "graphs of texts": lambda m: m.update(graphs=["model.onnx"]),
    "graphs not among the files": lambda m: m.update(graphs=[{"file": "../x.onnx", "n_tokens": 1}]),
    "graphs of no tokens": lambda m: m.update(graphs=[{"file": "model.onnx", "n_tokens": 0}]),
    "files outside": lambda m: m["files"].update({"../x": 1}),
    "files of no size": lambda m: m["files"].update({"model.data": "7"}),
    "n_ctx": lambda m: m.update(n_ctx=None),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_manifest_that_makes_no_sense_is_refused(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    rewrite(folder, change)
    with pytest.raises(ModelFileError, match=r"edgelm\.json"):
        open_model(folder)
