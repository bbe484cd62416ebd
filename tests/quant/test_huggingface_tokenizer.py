"""Special tokens and chat templates, against the gguf package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import SpecialVocab
from tiny_folders import write_folder, write_json

from edgelm.errors import ModelFileError
from edgelm.quant.huggingface import HuggingFaceFolder


def metadata_of(folder: Path, class_name: str, **changes: Any) -> dict[str, Any]:
    write_folder(folder, class_name, **changes)
    with HuggingFaceFolder(folder) as model:
        return dict(model.metadata)


def test_tokenizer_keys(tmp_path: Path) -> None:
    metadata = metadata_of(tmp_path, "MistralForCausalLM")
    assert {key: value for key, value in metadata.items() if "token" in key} == {
        "edgelm.tokenizer.json": str(tmp_path / "tokenizer.json"),
        "edgelm.eos_token_ids": [2, 7],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }


@pytest.mark.parametrize(
    "tokenizer_config",
    [
        {},
        {"add_bos_token": False},
        {"add_bos_token": True, "add_eos_token": True},
        {"bos_token": None, "eos_token": "<s>", "add_bos_token": False},
        {"bos_token": "</s>"},
        {"pad_token": "</s>"},
    ],
    ids=json.dumps,
)
def test_special_tokens_equal_the_gguf_package(tmp_path: Path, tokenizer_config: dict[str, Any]) -> None:
    write_folder(tmp_path, "LlamaForCausalLM")
    path = tmp_path / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text()) | tokenizer_config)
    official = SpecialVocab(tmp_path)
    with HuggingFaceFolder(tmp_path) as model:
        for kind, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
            assert model.metadata.get(f"tokenizer.ggml.{key}_token_id") == official.special_token_ids.get(kind)
        for kind in ("bos", "eos"):
            assert model.metadata.get(f"tokenizer.ggml.add_{kind}_token", False) == official.add_special_token.get(kind, False)
        assert model.metadata["tokenizer.chat_template"] == official.chat_template


def test_chat_template_from_its_own_file(tmp_path: Path) -> None:
    write_folder(tmp_path, "LlamaForCausalLM")
    write_json(tmp_path / "tokenizer_config.json", {})
    (tmp_path / "chat_template.jinja").write_text("{{ 'caf\u00e9' }}", "utf-8")
    with HuggingFaceFolder(tmp_path) as model:
        assert model.metadata["tokenizer.chat_template"] == "{{ 'caf\u00e9' }}"
        # Without names of special tokens, the numbers of config.json hold.
        assert model.metadata["tokenizer.ggml.bos_token_id"] == 1


def test_several_chat_templates(tmp_path: Path) -> None:
    write_folder(tmp_path, "LlamaForCausalLM")
    templates = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": templates})
    with HuggingFaceFolder(tmp_path) as model:
        assert model.metadata["tokenizer.chat_template"] == "a"
        assert model.metadata["tokenizer.chat_template.tool_use"] == "b"


def test_a_folder_with_weights_alone_can_be_opened(tmp_path: Path) -> None:
    write_folder(tmp_path, "LlamaForCausalLM", bos_token_id=None, eos_token_id=None)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).unlink()
    with HuggingFaceFolder(tmp_path) as model:
        assert [key for key in model.metadata if "token" in key] == ["edgelm.eos_token_ids"]


@pytest.mark.parametrize(
    "tokenizer_config",
    [
        {"added_tokens_decoder": {"one": {"content": "<s>"}}},
        {"added_tokens_decoder": {"1": "<s>"}},
        {"added_tokens_decoder": {"1": {}}},
        {"add_bos_token": "yes"},
        {"chat_template": 5},
        {"chat_template": [{"name": "default"}]},
        {"eos_token": {"content": 5}},
    ],
    ids=json.dumps,
)
def test_bad_tokenizer_config(tmp_path: Path, tokenizer_config: dict[str, Any]) -> None:
    write_folder(tmp_path, "LlamaForCausalLM")
    write_json(tmp_path / "tokenizer_config.json", tokenizer_config)
    with pytest.raises(ModelFileError, match=r"tokenizer_config\.json"):
        HuggingFaceFolder(tmp_path)
