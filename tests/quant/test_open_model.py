from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from tiny_folders import write_folder

from edgelm.errors import ModelFileError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.huggingface import HuggingFaceFolder
from edgelm.quant.open_model import open_model


def test_file_and_folder(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_folder(tmp_path / "folder", "LlamaForCausalLM")
    for path, kind in ((tmp_path / "a.gguf", GGUFFile), (tmp_path / "folder", HuggingFaceFolder)):
        model = open_model(str(path))
        assert isinstance(model, kind)
        assert model.path == path
        assert model.metadata["general.architecture"] == "llama"
        assert "output_norm.weight" in model.tensors
        model.close()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        open_model(tmp_path / "absent")
