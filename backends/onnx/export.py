"""Exporting a model to a folder of ONNX graphs, for one of several targets; the folder appears when it is whole."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgelm.backends.base import DEFAULT_N_CTX, Progress
from edgelm.backends.config import ModelConfig
from edgelm.backends.source_digest import source_digest
from edgelm.errors import BackendUnavailableError, InvalidRequestError, ModelFileError
from edgelm.quant.exported_folder import FORMAT, TARGETS, ExportedFolder, Manifest, is_exported_folder, write_manifest, write_metadata
from edgelm.quant.huggingface_tokenizer import TOKENIZER_JSON
from edgelm.quant.model_file import ModelFile, Tensor

# Where each target's graphs are written: export_<target>(file, folder, options, progress) -> ExportReport.
_WRITERS: Mapping[str, str] = {target: f"edgelm.backends.onnx.export_{target}" for target in TARGETS}
_PACKAGES: Mapping[str, tuple[str, ...]] = {"cpu": ("onnx",), "qnn": ("onnx", "onnxruntime"), "nnapi": ("onnx", "onnxruntime")}
_SOURCES = (
    "backends/onnx",
    "backends/config.py",
    "backends/rope.py",
    "backends/weights.py",
    "quant/blocks.py",
    "quant/block_codes.py",
    "quant/grid_formats.py",
    "quant/pack_nbits.py",
)
_CHOICES: Mapping[str, tuple[object, ...]] = {
    "target": TARGETS,
    "precision": ("int8", "f32"),
    "kv_type": ("f32", "f16"),
    "requantize": (None, "q4_0", "q8_0"),
    "weight_bits": (8, 4),
}


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        target: "cpu", "qnn" or "nnapi".
        n_ctx: tokens that one sequence may hold; the model's own context, at most 4096, unless given.
        precision: "int8" or "f32", the activations in products with quantized weights (target cpu).
        kv_type: "f32" or "f16", the number type of the KV cache (target cpu).
        requantize: "q4_0" or "q8_0": matrices in wider formats become this one, which is not exact; None keeps every weight's value
            (target cpu).
        chunk: tokens of the graph that reads prompts (targets qnn and nnapi).
        soc: name of the Qualcomm chip to compile a context binary for; None compiles none (target qnn).
        weight_bits: 8 or 4, of the weights of matrices (target qnn).
        calibration: tokens of the text from which the ranges of activations are taken (target qnn).
    """

    target: str = "cpu"
    n_ctx: int | None = None
    precision: str = "int8"
    kv_type: str = "f32"
    requantize: str | None = None
    chunk: int = 32
    soc: str | None = None
    weight_bits: int = 8
    calibration: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                known = ", ".join("nothing" if choice is None else str(choice) for choice in choices)
                raise InvalidRequestError(f"export with {name} = {value!r} is not possible; choose one of {known}")
        for name, value in (("n_ctx", self.n_ctx), ("chunk", self.chunk)):
            if value is not None and value < 1:
                raise InvalidRequestError(f"{name} is {value}; it must be at least 1")
        if self.requantize == "q8_0" and self.precision == "f32":
            raise InvalidRequestError(
                "requantize q8_0 gains nothing at precision f32, which stores 8-bit weights as float32; choose q4_0, or precision int8"
            )

    def context(self, config: ModelConfig) -> int:
        """Tokens that one sequence may hold."""
        return self.n_ctx or min(config.n_ctx_train, DEFAULT_N_CTX)


@dataclass(frozen=True)
class StoredFormat:
    """What became of the matrices of one format.

    Attributes:
        format: in the model file.
        stored: in the graph ("4-bit codes and offsets", "Q4_0 in 4-bit codes", "float32").
        exact: whether every weight kept its value.
        n_matrices: matrices of this format.
        bytes_before, bytes_after: in the model file, and in the graph.
    """

    format: str
    stored: str
    exact: bool
    n_matrices: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        folder: where it is.
        manifest: what the folder says of itself.
        formats: what became of each format of the model file.
        notes: lines for the person who asked.
    """

    folder: Path
    manifest: Manifest
    formats: tuple[StoredFormat, ...] = ()
    notes: tuple[str, ...] = ()


def stored_formats(file: ModelFile, becomes: Callable[[Tensor], tuple[str, int]], exact: bool) -> tuple[StoredFormat, ...]:
    """What became of a model's matrices, by format.

    Args:
        becomes: what a matrix is stored as, and its bytes then.
        exact: whether every weight kept its value.
    """
    sizes: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for tensor in file.tensors.values():
        if len(tensor.shape) == 2:
            stored, n_bytes = becomes(tensor)
            sizes.setdefault((tensor.format.name, stored), []).append((tensor.data.size, n_bytes))
    return tuple(
        StoredFormat(name, stored, exact, len(pairs), sum(before for before, _ in pairs), sum(after for _, after in pairs))
        for (name, stored), pairs in sizes.items()
    )


def export_model(
    file: ModelFile,
    folder: Path,
    options: ExportOptions,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
    add_files: Callable[[Path], None] | None = None,
) -> ExportReport:
    """Write an exported folder. It is made beside its place and moved there when it is whole, so that no half of one is ever seen.

    Args:
        overwrite: replace an exported folder that is there.
        add_files: called with the unfinished folder, to write further files into it (a tokenizer's).

    Raises:
        InvalidRequestError: something that is not to be overwritten stands there.
        ModelFileError: the model file is damaged, or the folder cannot be written.
        UnsupportedModelError: a sound model that the target cannot hold.
        BackendUnavailableError: a package that the export needs is not installed.
    """
    _check_place(folder, overwrite)
    write = _writer(options.target)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
        try:
            unfinished.chmod(0o755)
            report = write(file, unfinished, options, progress or (lambda _line: None))
            write_metadata(unfinished, file.metadata)
            if TOKENIZER_JSON in file.metadata:
                shutil.copyfile(file.metadata[TOKENIZER_JSON], unfinished / "tokenizer.json")
            if add_files is not None:
                add_files(unfinished)
            manifest = write_manifest(unfinished, report.manifest)
            _move(unfinished, folder, overwrite)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise ModelFileError(
            f"{folder} cannot be written ({error.strerror or error}); free space there, or choose another place"
        ) from error
    return dataclasses.replace(report, folder=folder, manifest=manifest)


def cached_export(file: ModelFile, options: ExportOptions, cache_folder: Path, progress: Progress | None = None) -> Path:
    """The folder within `cache_folder` that holds this model exported with these options; it is exported if it is not there yet.

    Processes that export the same at the same time do not disturb each other: the first to finish wins.

    Raises: as export_model.
    """
    name = _digest(_states(file.path), dataclasses.asdict(options))
    folder = cache_folder / "onnx" / f"{name}-{_digest(FORMAT, source_digest(_SOURCES))}"
    damaged = False
    if is_exported_folder(folder):
        try:
            ExportedFolder(folder)
        except ModelFileError:
            damaged = True  # since it was made; the new one takes its place
        else:
            return folder
    if progress is not None:
        progress(f"exporting {file.path.name} to ONNX, once")
    try:
        export_model(file, folder, options, progress, overwrite=damaged)
    except InvalidRequestError:
        if not is_exported_folder(folder):  # otherwise another process was faster
            raise
    for older in folder.parent.glob(f"{name}-*"):  # the same, as another version of edgelm wrote it
        if older != folder:
            shutil.rmtree(older, ignore_errors=True)
    return folder


def _states(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the model's files."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(str(part.absolute()), part.stat().st_size, part.stat().st_mtime_ns) for part in files]


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode("utf-8", "surrogateescape")).hexdigest()[:20]


def _check_place(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (overwrite and is_exported_folder(folder)):
        return
    if is_exported_folder(folder):
        raise InvalidRequestError(f"{folder}: an exported model is there already; ask to overwrite it, or choose another folder")
    raise InvalidRequestError(f"{folder}: something else than an exported model is there; choose a folder that does not exist yet")


def _move(unfinished: Path, folder: Path, overwrite: bool) -> None:
    """Put the finished folder in its place; an old one goes away only once the new one is whole."""
    if overwrite and folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".old") as old:
            folder.rename(Path(old) / folder.name)
            unfinished.rename(folder)
        return
    try:
        unfinished.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise InvalidRequestError(f"{folder}: something appeared there meanwhile; choose another folder") from None
        raise


def _writer(target: str) -> Callable[[ModelFile, Path, ExportOptions, Progress], ExportReport]:
    missing = [package for package in _PACKAGES[target] if find_spec(package) is None]
    if missing:
        raise BackendUnavailableError(
            f"exporting to {target} needs {' and '.join(missing)}, not installed here; install with: pip install 'edgelm[onnx]'"
        )
    writer: Any = getattr(import_module(_WRITERS[target]), f"export_{target}")
    return writer  # type: ignore[no-any-return]
