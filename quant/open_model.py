"""Opening a model on disk, whatever its container."""

from __future__ import annotations

from pathlib import Path

from edgelm.quant.exported_folder import METADATA, ExportedFolder, is_exported_folder
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.huggingface import HuggingFaceFolder
from edgelm.quant.model_file import ModelFile


def open_model(path: str | Path) -> ModelFile:
    """Open a GGUF file, a Hugging Face folder with config.json and safetensors, or a folder that edgelm exported.

    Raises:
        ModelFileError: nothing there, or what is there is cut short, malformed or contradicts itself.
        UnsupportedModelError: a sound model that edgelm does not read.
    """
    path = Path(path)
    if is_exported_folder(path) or (path / METADATA).is_file():
        return ExportedFolder(path)
    return HuggingFaceFolder(path) if path.is_dir() else GGUFFile(path)
