"""Graphs compiled for a chip run as those that are not, and damaged ones are refused before the library sees them."""

from __future__ import annotations

import dataclasses
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import write_variant

from edgelm.backends.onnx.context_binary import EMULATED, SOCS, compile_graph, find_soc, prepared_settings, sha256
from edgelm.backends.onnx.decoder import Run
from edgelm.backends.onnx.export import ExportOptions, export_model
from edgelm.backends.onnx.providers import unavailable_reason
from edgelm.backends.onnx.session import SessionSettings
from edgelm.backends.onnx.static_decoder import StaticDecoder
from edgelm.errors import BackendUnavailableError, InvalidRequestError, ModelFileError
from edgelm.quant.exported_folder import ExportedFolder, Manifest, write_manifest
from edgelm.quant.open_model import open_model

RNG = np.random.default_rng(0)
CALIBRATION = tuple(RNG.integers(0, 288, 256).tolist())
TOKENS = RNG.integers(0, 288, 13).astype(np.int32)
QNN = SessionSettings(providers=("qnn",), strict=True)
BINARY = "decode_qnn.bin"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], Path]:
    """Gives the exported folder of a tiny model, compiled for a chip or for none; each is exported once."""
    reason = unavailable_reason("qnn")
    if reason is not None:
        pytest.skip(f"the provider qnn: {reason}")
    place = tmp_path_factory.mktemp("qnn")
    model = write_variant(place / "llama.gguf", "llama")

    def folder(soc: str | None) -> Path:
        path = place / str(soc)
        if not path.exists():
            export_model(open_model(model), path, ExportOptions("qnn", n_ctx=32, chunk=8, soc=soc, calibration=CALIBRATION))
        return path

    return folder


@pytest.fixture
def compiled(folders: Callable[[str | None], Path], tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(folders("SM8650"), tmp_path / "compiled"))


def logits(folder: Path, settings: SessionSettings = QNN) -> NDArray[np.float32]:
    decoder = StaticDecoder(ExportedFolder(folder), settings, 32)
    try:
        assert set(decoder.providers) == {"qnn"}
        decoder.reserve(1)
        return decoder.run([Run(0, 0, TOKENS, np.arange(len(TOKENS)))], hidden=False)[0]
    finally:
        decoder.close()


def with_sums(manifest: Manifest, sums: dict[str, str]) -> Manifest:
    return dataclasses.replace(manifest, details={**manifest.details, "binaries": sums})


def test_chips_are_found_by_name() -> None:
    assert find_soc("sm8550") is SOCS["SM8550"]
    assert find_soc("SM8550").provider_options == {"soc_model": "43", "htp_arch": "73"}
    with pytest.raises(
        InvalidRequestError, match=r"no chip is called 'SM1'; edgelm compiles for .*SM8650 \(Snapdragon 8 Gen 3\), .*SC8380XP"
    ):
        find_soc("SM1")


def test_no_two_chips_have_one_number() -> None:
    assert len({soc.soc_model for soc in SOCS.values()}) == len(SOCS)


def test_a_compiled_graph_gives_the_logits_of_the_uncompiled_one(folders: Callable[[str | None], Path]) -> None:
    assert EMULATED.name == "SM8650"
    assert np.array_equal(logits(folders("SM8650")), logits(folders(None)))


@pytest.mark.parametrize("soc", ["SM8350", "SM8450", "SM8850"])
def test_chips_of_every_generation_compile(soc: str, folders: Callable[[str | None], Path]) -> None:
    path = folders(soc)
    details = ExportedFolder(path).manifest.details
    assert (details["soc"], details["htp_arch"]) == (soc, SOCS[soc].htp_arch)
    assert details["qnn_sdk"]
    assert sorted(details["binaries"]) == ["decode.onnx", "decode_qnn.bin", "prefill.onnx", "prefill_qnn.bin"]
    assert np.abs(logits(path) - logits(folders(None))).max() < 0.5


def test_what_the_compiler_cannot_do_is_an_error(folders: Callable[[str | None], Path], tmp_path: Path) -> None:
    with_float16 = folders(None) / "decode.onnx"
    with pytest.raises(BackendUnavailableError, match=r"decode\.onnx cannot be compiled for SM8350 \(Failed to finalize"):
        compile_graph(with_float16, tmp_path / "decode.onnx", SOCS["SM8350"])


def test_only_what_was_compiled_is_left(folders: Callable[[str | None], Path]) -> None:
    names = {path.name for path in folders("SM8650").iterdir()}
    assert names == {"decode.onnx", "decode_qnn.bin", "prefill.onnx", "prefill_qnn.bin", "metadata.gguf", "edgelm.json"}


def test_a_flipped_bit_is_found(compiled: Path) -> None:
    data = bytearray((compiled / BINARY).read_bytes())
    data[len(data) // 2] ^= 1
    (compiled / BINARY).write_bytes(data)
    with pytest.raises(ModelFileError, match=r"decode_qnn\.bin: the compiled graph is damaged"):
        logits(compiled)


@pytest.mark.parametrize("size", [0, 1000, -1])
def test_a_binary_cut_short_is_refused(size: int, compiled: Path) -> None:
    (compiled / BINARY).write_bytes((compiled / BINARY).read_bytes()[:size])
    with pytest.raises(ModelFileError, match=rf"{BINARY}: \d+ bytes, but \d+ were exported"):
        logits(compiled)


@pytest.mark.parametrize("size", [0, 1000, -1])
def test_what_the_library_finds_damaged_is_an_error_too(size: int, compiled: Path) -> None:
    manifest = ExportedFolder(compiled).manifest
    (compiled / BINARY).write_bytes((compiled / BINARY).read_bytes()[:size])
    write_manifest(compiled, with_sums(manifest, {BINARY: sha256(compiled / BINARY)}))
    with pytest.raises(ModelFileError, match=r"decode\.onnx: the compiled context cannot be loaded"):
        logits(compiled)


def test_a_missing_binary_is_named(compiled: Path) -> None:
    (compiled / BINARY).unlink()
    with pytest.raises(ModelFileError, match=rf"{BINARY}: the file is missing"):
        logits(compiled)


def test_sums_of_files_beyond_the_folder_are_refused(compiled: Path) -> None:
    sums = {"../compiled/metadata.gguf": sha256(compiled / "metadata.gguf")}
    write_manifest(compiled, with_sums(ExportedFolder(compiled).manifest, sums))
    with pytest.raises(ModelFileError, match="damaged"):
        logits(compiled)


def test_the_emulator_is_given_a_chip_only_where_none_is_known(
    folders: Callable[[str | None], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, compiled = ExportedFolder(folders(None)), ExportedFolder(folders("SM8650"))
    named = SessionSettings(providers=("qnn",), provider_options={"qnn": {"soc_model": "69"}})
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert prepared_settings(plain, QNN).provider_options == {"qnn": {"soc_model": "57", "htp_arch": "75"}}
    assert prepared_settings(compiled, QNN) == QNN
    assert prepared_settings(plain, named) == named
    assert prepared_settings(plain, SessionSettings()) == SessionSettings()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert prepared_settings(plain, QNN) == QNN
