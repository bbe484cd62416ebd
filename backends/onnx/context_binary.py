"""Compiles quantized graphs for one Qualcomm chip ("context binary"), and prepares what was compiled, or not, for being opened.

A compiled graph is a small ONNX file with one EPContext node, and the binary that the node names, beside it. Compiling happens wherever
the library of onnxruntime-qnn has a compiler: on x86-64 it also has an emulator, on which the result runs.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgelm.backends.onnx.providers import ort_message
from edgelm.backends.onnx.session import SessionSettings, open_session
from edgelm.errors import BackendUnavailableError, InvalidRequestError, ModelFileError
from edgelm.quant.exported_folder import MANIFEST, ExportedFolder


@dataclass(frozen=True)
class Soc:
    """One Qualcomm chip.

    Attributes:
        name: Qualcomm's name, as Android devices give it in ro.soc.model.
        title: what it is sold as.
        soc_model: its number in the QNN SDK.
        htp_arch: version of its tensor processor.
        has_float16: whether that processor computes in float16.
    """

    name: str
    title: str
    soc_model: int
    htp_arch: int
    has_float16: bool = True

    @property
    def provider_options(self) -> Mapping[str, str]:
        """Options of the provider qnn that compile for this chip."""
        return {"soc_model": str(self.soc_model), "htp_arch": str(self.htp_arch)}


# Numbers: enum Qnn_SocModel_t of the QNN SDK's include/QNN/QnnTypes.h. Architectures: table _soc_info_table of ExecuTorch's
# backends/qualcomm/serialization/qc_schema.py (written by Qualcomm), which lacks the laptops and QCS8550: theirs are the versions
# these chips are known by. Chips that the library of onnxruntime-qnn 2.7 refuses (SM8635, SC8280X, QCM6490, ...) are left out.
_CHIPS = (
    Soc("SM8850", "Snapdragon 8 Elite Gen 5", 87, 81),
    Soc("SM8845", "Snapdragon 8 Gen 5", 97, 81),
    Soc("SM8750", "Snapdragon 8 Elite", 69, 79),
    Soc("SM8650", "Snapdragon 8 Gen 3", 57, 75),
    Soc("SM8550", "Snapdragon 8 Gen 2", 43, 73),
    Soc("SM8475", "Snapdragon 8+ Gen 1", 42, 69),
    Soc("SM8450", "Snapdragon 8 Gen 1", 36, 69),
    Soc("SM8350", "Snapdragon 888", 30, 68, has_float16=False),
    Soc("SC8480XP", "Snapdragon X2 Elite", 88, 81),
    Soc("SC8380XP", "Snapdragon X Elite and X Plus", 60, 73),
    Soc("QCS9100", "Dragonwing IQ-9", 77, 73),
    Soc("QCS8550", "Dragonwing QCS8550", 66, 73),
    Soc("SXR2330P", "Snapdragon XR", 75, 79),
    Soc("SXR2230P", "Snapdragon XR2 Gen 2", 53, 69),
    Soc("SA8797", "Snapdragon Cockpit and Ride Elite", 72, 81),
    Soc("SA8255", "Snapdragon Cockpit Gen 4", 52, 73),
    Soc("SA8295", "Snapdragon Cockpit Gen 4", 39, 68),
    Soc("SA8540", "Snapdragon Ride", 62, 68),
)

SOCS: Mapping[str, Soc] = MappingProxyType({soc.name: soc for soc in _CHIPS})

EMULATED = SOCS["SM8650"]
"""What the emulator is to be where the graphs were not compiled for a chip: left to itself, it is one without float16."""

_COMPILE = MappingProxyType({"ep.context_enable": "1", "ep.context_embed_mode": "0"})


def find_soc(name: str) -> Soc:
    """The chip of a name, in capitals or not.

    Raises:
        InvalidRequestError: no chip of the table has this name.
    """
    soc = SOCS.get(name.upper())
    if soc is None:
        known = ", ".join(f"{soc.name} ({soc.title})" for soc in SOCS.values())
        raise InvalidRequestError(f"no chip is called {name!r}; edgelm compiles for {known}")
    return soc


def compile_graph(graph: Path, compiled: Path, soc: Soc) -> tuple[Path, ...]:
    """Compile a quantized graph for a chip; nothing of it may fall to the CPU. The files written: `compiled` and its binary.

    Raises:
        BackendUnavailableError: onnxruntime-qnn is not installed, or its compiler fails.
        UnsupportedModelError: nodes that the chip's tensor processor does not take.
    """
    config = {**_COMPILE, "ep.context_file_path": str(compiled)}
    options = {"qnn": soc.provider_options}
    try:
        open_session(graph, SessionSettings(providers=("qnn",), provider_options=options, strict=True, config=config)).close()
    except ModelFileError as error:  # the graph was written a moment ago, so the fault is not the file's
        raise BackendUnavailableError(
            f"{graph.name} cannot be compiled for {soc.name} ({ort_message(error.__cause__ or error)}); try a smaller chunk or another chip"
        ) from error
    binary = compiled.with_name(f"{compiled.stem}_qnn.bin")
    if not (compiled.is_file() and binary.is_file()):
        raise BackendUnavailableError(
            f"compiling {graph.name} for {soc.name} wrote no {compiled.name} with {binary.name}; update onnxruntime-qnn"
        )
    return compiled, binary


def sha256(path: Path) -> str:
    """The file's SHA-256 sum, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_binaries(folder: ExportedFolder) -> None:
    """Compare each compiled file with the sum in the manifest: the library itself loads a binary with changed weights without a word.

    Raises:
        ModelFileError: a file was changed.
    """
    sums: Any = folder.manifest.details.get("binaries", {})
    if not isinstance(sums, dict):
        raise ModelFileError(f"{folder.path / MANIFEST}: details.binaries is no object; export or copy the folder again")
    for name, wanted in sums.items():
        path = folder.path / name
        if name not in folder.manifest.files or sha256(path) != wanted:
            raise ModelFileError(f"{path}: the compiled graph is damaged (its SHA-256 sum is another); export or copy the folder again")


def prepared_settings(folder: ExportedFolder, settings: SessionSettings) -> SessionSettings:
    """The settings with which the folder's graphs are opened: on the emulator, graphs that were compiled for no chip are given one.

    Raises:
        ModelFileError: a compiled file was changed.
    """
    check_binaries(folder)
    given = settings.provider_options.get("qnn", {})
    compiled = bool(folder.manifest.details.get("binaries"))
    if compiled or "qnn" not in settings.providers or {"soc_model", "htp_arch"} & set(given) or not _is_emulated():
        return settings
    return replace(settings, provider_options={**settings.provider_options, "qnn": {**EMULATED.provider_options, **given}})


def _is_emulated() -> bool:
    """Whether this machine has Qualcomm's emulator and no tensor processor."""
    return platform.machine().lower() in ("x86_64", "amd64")
