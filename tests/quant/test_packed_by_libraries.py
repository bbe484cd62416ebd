"""Checkpoints that AutoAWQ, AutoGPTQ and compressed-tensors have packed themselves; data/packed/recipe.py made them."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tiny_folders import write_folder

from edgelm.backends.reference import ReferenceModel
from edgelm.quant.open_model import open_model

PACKED = Path(__file__).parents[1] / "data/packed"
TOKENS = (np.arange(5, 45) % 40).astype(np.int32)
FORMATS = {
    "awq": "Q5_0",
    "gptq-4": "Q4_0",
    "gptq-4-asymmetric": "Q5_0",
    "gptq-4-asymmetric-act-order": "F32",
    "gptq-8": "Q8_0",
    "compressed-tensors-4": "Q4_0",
    "compressed-tensors-4-asymmetric": "Q5_0",
    "compressed-tensors-8": "Q8_0",
}


def test_every_checkpoint_is_here() -> None:
    assert sorted(FORMATS) == sorted(path.name for path in PACKED.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_those_of_the_weights_that_were_packed(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "tiny", "LlamaForCausalLM")
    folder = Path(shutil.copytree(PACKED / name, tmp_path / name))
    shutil.copy(tmp_path / "tiny" / "tokenizer.json", folder)
    wanted = np.load(folder / "logits.npy")
    with closing(open_model(folder)) as file:
        assert {tensor.format.name for tensor in file.tensors.values() if tensor.name.startswith("blk.") and len(tensor.shape) == 2} == {
            FORMATS[name]
        }
        np.testing.assert_allclose(ReferenceModel(file).logits(TOKENS), wanted, atol=1e-5 * np.abs(wanted).max())
