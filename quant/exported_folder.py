"""A model exported to ONNX: a folder with graphs, their data, the source's metadata, and a manifest that says what is there.

edgelm.json      the manifest, written last: a folder without it is not whole
metadata.gguf    the source's metadata in a GGUF without tensors: tokenizer, chat template, sizes
*.onnx, *.data   graphs and weights
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgelm.errors import ModelFileError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.gguf_writer import entry, write_gguf
from edgelm.quant.huggingface_tokenizer import TOKENIZER_JSON
from edgelm.quant.json_file import JsonObject
from edgelm.quant.model_file import Tensor
from edgelm.version import __version__

MANIFEST = "edgelm.json"
METADATA = "metadata.gguf"
FORMAT = 1
"""Version of the folder's layout and of its graphs' inputs and outputs."""
TARGETS = ("cpu", "qnn", "nnapi")


@dataclass(frozen=True)
class GraphFile:
    """One graph of the folder.

    Attributes:
        file: its ONNX file.
        n_tokens: tokens that one run takes; None for any number.
    """

    file: str
    n_tokens: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What an exported folder holds.

    Attributes:
        target: "cpu", "qnn" or "nnapi".
        n_ctx: tokens that one sequence may hold.
        precision: of the activations in matrix products: "int8", "f32", "uint16".
        kv_type: number type of the KV cache: "f32", "f16", "int16" (Qualcomm's NPUs).
        graphs: the graphs, the one for the most tokens first.
        details: what only this target knows, as JSON values.
        files: bytes of every file in the folder but the manifest itself, by name.
        edgelm: version that wrote it.
        format: version of the layout.
    """

    target: str
    n_ctx: int
    precision: str
    kv_type: str
    graphs: tuple[GraphFile, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    edgelm: str = __version__
    format: int = FORMAT


def write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write metadata.gguf: every value of a model's metadata under its key."""
    entries = [entry(key, _as_array(value)) for key, value in metadata.items()]
    write_gguf(folder / METADATA, b"".join(entries), len(entries), [])


def _as_array(value: Any) -> Any:
    """A list of whole numbers, as the metadata of a Hugging Face folder has it, as the array that a GGUF file gives back."""
    is_numbers = isinstance(value, list) and bool(value) and all(type(number) is int for number in value)
    return np.array(value, np.int64) if is_numbers else value


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of a folder whose other files are all there; the manifest with their sizes.

    Raises:
        ModelFileError: the file cannot be written.
    """
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    sizes.pop(MANIFEST, None)
    whole = Manifest(**{**manifest.__dict__, "files": sizes})
    partial = folder / f"{MANIFEST}.partial"
    try:
        partial.write_text(json.dumps(asdict(whole), indent=1), encoding="utf-8")
        partial.replace(folder / MANIFEST)
    except OSError as error:
        raise ModelFileError(
            f"{folder / MANIFEST} cannot be written ({error.strerror}); free space there, or choose another place"
        ) from error
    return whole


class ExportedFolder:
    """An exported model, opened; a ModelFile without tensors.

    Raises:
        ModelFileError: a file is missing, cut short or malformed, or another version of edgelm wrote the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._manifest = _read_manifest(self._path)
        with GGUFFile(self._path / METADATA) as file:
            metadata = dict(file.metadata)
        if TOKENIZER_JSON in metadata:  # the source was a folder with a tokenizer.json; this one has a copy
            metadata[TOKENIZER_JSON] = str((self._path / "tokenizer.json").absolute())
        self._metadata = MappingProxyType(metadata)

    @property
    def path(self) -> Path:
        return self._path

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The source's metadata, under GGUF keys."""
        return self._metadata

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """None: the weights are in the graphs."""
        return MappingProxyType({})

    def drop_pages(self) -> None:
        """Nothing is mapped."""

    def close(self) -> None:
        """Nothing is held open."""


def is_exported_folder(path: Path) -> bool:
    """Whether the folder has a manifest."""
    return (path / MANIFEST).is_file()


def _read_manifest(folder: Path) -> Manifest:
    values = JsonObject.read(folder / MANIFEST)
    version = values.integer("format")
    if version != FORMAT:
        raise ModelFileError(
            f"{folder}: exported in layout {version} by edgelm {values.text('edgelm', 'unknown')}, but this edgelm {__version__} "
            f"reads layout {FORMAT}; export the model again"
        )
    target = values.text("target")
    if target not in TARGETS:
        raise values.fail("target", f"one of {', '.join(TARGETS)}")
    manifest = Manifest(
        target=target,
        n_ctx=values.integer("n_ctx"),
        precision=values.text("precision"),
        kv_type=values.text("kv_type"),
        graphs=_graphs(values),
        details=values.object("details").values,
        files=values.object("files").values,
        edgelm=values.text("edgelm"),
        format=version,
    )
    if manifest.n_ctx < 1 or not manifest.graphs:
        raise values.fail("graphs", "at least one graph, with a context of at least one token")
    for name, size in manifest.files.items():
        _check_file(folder, name, size, values)
    for graph in manifest.graphs:
        if graph.file not in manifest.files:
            raise values.fail("graphs", "graphs that are among the files")
    return manifest


def _graphs(values: JsonObject) -> tuple[GraphFile, ...]:
    graphs = values.values.get("graphs")
    if not isinstance(graphs, list):
        raise values.fail("graphs", "a list of objects")
    return tuple(_graph(graph, values) for graph in graphs)


def _graph(value: object, values: JsonObject) -> GraphFile:
    graph = JsonObject(value, values.where) if isinstance(value, dict) else None
    if graph is None:
        raise values.fail("graphs", "a list of objects")
    n_tokens = graph.values.get("n_tokens")
    if n_tokens is not None and (type(n_tokens) is not int or n_tokens < 1):
        raise values.fail("graphs", "graphs whose n_tokens is a whole number above 0, or null")
    return GraphFile(graph.text("file"), n_tokens)


def _check_file(folder: Path, name: str, size: object, values: JsonObject) -> None:
    if not name or Path(name).is_absolute() or ".." in Path(name).parts or type(size) is not int:
        raise values.fail("files", "sizes of files within the folder")
    try:
        actual = (folder / name).stat().st_size
    except OSError as error:
        raise ModelFileError(f"{folder / name}: the file is missing ({error.strerror}); export or copy the folder again") from None
    if actual != size:
        raise ModelFileError(f"{folder / name}: {actual} bytes, but {size} were exported; export or copy the folder again")
