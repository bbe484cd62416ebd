"""The configuration that onnxruntime-genai reads."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_variant

from edgelm.backends.config import read_config
from edgelm.backends.onnx.genai_config import genai_config, write_genai_config
from edgelm.quant.gguf_file import GGUFFile


def test_sizes_and_tokens_are_the_models_own(tmp_path: Path) -> None:
    with GGUFFile(write_variant(tmp_path / "m.gguf", "qwen3")) as file:
        values = genai_config(read_config(file.metadata), file.metadata, 288, 400, "model.onnx")
    write_genai_config(tmp_path, values)
    model = json.loads((tmp_path / "genai_config.json").read_text())["model"]
    assert (model["type"], model["vocab_size"], model["context_length"]) == ("qwen3", 288, 400)
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (0, [2], 2)
    decoder = model["decoder"]
    assert (decoder["head_size"], decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (32, 4, 2)
    assert decoder["filename"] == "model.onnx"


def test_all_tokens_that_end_a_text_are_listed_once(tmp_path: Path) -> None:
    with GGUFFile(write_variant(tmp_path / "m.gguf", "llama")) as file:
        more = {"tokenizer.ggml.eot_token_id": 7, "edgelm.eos_token_ids": np.array([2, 9], np.int32), "tokenizer.ggml.padding_token_id": 4}
        values = genai_config(read_config(file.metadata), {**file.metadata, **more}, 288, 400, "model.onnx")
    assert values["model"]["eos_token_id"] == [2, 7, 9]
    assert values["model"]["pad_token_id"] == 4
    json.dumps(values)


@pytest.mark.parametrize(("variant", "name"), [("gemma3", "gemma3_text"), ("phi3", "decoder"), ("granite", "granite")])
def test_architectures_have_the_names_that_genai_knows(tmp_path: Path, variant: str, name: str) -> None:
    with GGUFFile(write_variant(tmp_path / "m.gguf", variant)) as file:
        values = genai_config(read_config(file.metadata), file.metadata, 288, 400, "model.onnx")
    assert values["model"]["type"] == name
