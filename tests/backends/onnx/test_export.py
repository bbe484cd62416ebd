"""Exported folders appear whole or not at all, and cached ones are made once."""

import os
import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import write_tiny

from edgelm.backends.onnx.export import ExportOptions, cached_export, export_model
from edgelm.errors import BackendUnavailableError, EdgeLMError, InvalidRequestError, ModelFileError
from edgelm.quant.exported_folder import ExportedFolder
from edgelm.quant.gguf_file import GGUFFile

OPTIONS = ExportOptions(n_ctx=64)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[GGUFFile]:
    (tmp_path / "models").mkdir()
    with GGUFFile(write_tiny(tmp_path / "models" / "m.gguf", "llama", format="Q4_0")) as file:
        yield file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_says_what_it_holds(model: GGUFFile, tmp_path: Path) -> None:
    report = export_model(model, tmp_path / "new" / "out", OPTIONS, add_files=lambda folder: (folder / "more.txt").write_text("more"))
    folder = ExportedFolder(tmp_path / "new" / "out")
    assert folder.manifest == report.manifest
    assert (folder.manifest.target, folder.manifest.n_ctx, folder.manifest.precision) == ("cpu", 64, "int8")
    assert folder.metadata["general.architecture"] == "llama"
    assert names(folder.path) == ["edgelm.json", "genai_config.json", "metadata.gguf", "model.onnx", "model.onnx.data", "more.txt"]
    assert names(tmp_path / "new") == ["out"]


def test_what_is_there_is_not_overwritten_unasked(model: GGUFFile, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(model, out, OPTIONS)
    with pytest.raises(InvalidRequestError, match="overwrite"):
        export_model(model, out, ExportOptions(n_ctx=32))
    assert ExportedFolder(out).manifest.n_ctx == 64
    export_model(model, out, ExportOptions(n_ctx=32), overwrite=True)
    assert ExportedFolder(out).manifest.n_ctx == 32
    assert names(tmp_path) == ["models", "out"]


def test_a_folder_of_something_else_is_never_overwritten(model: GGUFFile, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    with pytest.raises(InvalidRequestError, match="something else"):
        export_model(model, tmp_path / "out", OPTIONS, overwrite=True)
    assert names(tmp_path / "out") == ["letter.txt"]


def test_a_failure_on_the_way_leaves_nothing(model: GGUFFile, tmp_path: Path) -> None:
    def fail(_folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(model, tmp_path / "out", OPTIONS, add_files=fail)
    assert names(tmp_path) == ["models"]


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(model: GGUFFile, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ModelFileError, match="cannot be written"):
            export_model(model, tmp_path / "out", OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["models"]


def test_a_place_that_cannot_be_written_is_a_clear_error(model: GGUFFile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="cannot be written"):
        export_model(model, tmp_path / "file" / "out", OPTIONS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "gpu"},
        {"precision": "f16"},
        {"kv_type": "int8"},
        {"requantize": "q5_0"},
        {"n_ctx": 0},
        {"requantize": "q8_0", "precision": "f32"},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        ExportOptions(**wrong)


@pytest.mark.parametrize(("target", "package"), [("cpu", "onnx"), ("qnn", "onnxruntime"), ("nnapi", "onnxruntime")])
def test_a_package_that_is_not_installed(
    target: str, package: str, model: GGUFFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendUnavailableError, match=rf"needs {package}, .*pip install 'edgelm\[onnx\]'"):
        export_model(model, tmp_path / "out", ExportOptions(target, n_ctx=8))


def test_a_cached_export_is_made_once_for_each_file_and_options(model: GGUFFile, tmp_path: Path) -> None:
    cache, lines = tmp_path / "cache", []
    first = cached_export(model, OPTIONS, cache, lines.append)
    made = (first / "model.onnx").stat().st_mtime_ns
    assert cached_export(model, OPTIONS, cache, lines.append) == first
    assert (first / "model.onnx").stat().st_mtime_ns == made
    assert [line for line in lines if "once" in line] == ["exporting m.gguf to ONNX, once"]
    assert cached_export(model, ExportOptions(n_ctx=32), cache) != first
    os.utime(model.path, ns=(1, 1))
    assert cached_export(model, OPTIONS, cache) != first


def test_a_damaged_cached_export_is_made_again(model: GGUFFile, tmp_path: Path) -> None:
    folder = cached_export(model, OPTIONS, tmp_path / "cache")
    (folder / "model.onnx.data").write_bytes(b"")
    assert cached_export(model, OPTIONS, tmp_path / "cache") == folder
    ExportedFolder(folder)


def test_exports_of_the_same_at_the_same_time_do_not_disturb_each_other(model: GGUFFile, tmp_path: Path) -> None:
    start, errors = threading.Barrier(4), []

    def work() -> None:
        start.wait()
        try:
            ExportedFolder(cached_export(model, OPTIONS, tmp_path / "cache"))
        except EdgeLMError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(names(tmp_path / "cache" / "onnx")) == 1


def test_an_export_of_older_code_is_replaced(model: GGUFFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = cached_export(model, ExportOptions(n_ctx=32), tmp_path)
    first = cached_export(model, OPTIONS, tmp_path)
    monkeypatch.setattr("edgelm.backends.onnx.export.FORMAT", 2)
    second = cached_export(model, OPTIONS, tmp_path)
    assert first != second
    assert names(tmp_path / "onnx") == sorted((other.name, second.name))
