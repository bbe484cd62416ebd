"""Names of models and where their files are."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.runtime.catalogue import CATALOGUE, DEFAULT_MODEL, HubFile, WheelMember, find_model, is_path, resolve_model
from edgelm.runtime.settings import Settings, read_settings


def test_rows_are_complete() -> None:
    assert DEFAULT_MODEL in CATALOGUE
    for name, model in CATALOGUE.items():
        assert model.name == name
        assert len(model.sha256 or "") == 64
        assert (model.n_bytes or 0) > 0
        assert model.licence
        assert isinstance(model.source, tuple)
        assert all(isinstance(member, WheelMember) and "==" in member.requirement for member in model.source)
    assert "https://ai.google.dev/gemma/terms" in CATALOGUE["gemma3-270m"].licence


def test_hub_names() -> None:
    model = find_model("hf:owner/repo/sub/model-Q4_0.gguf")
    assert model.source == HubFile("owner/repo", "sub/model-Q4_0.gguf")
    assert model.file == "hf/owner/repo/sub/model-Q4_0.gguf"


@pytest.mark.parametrize("name", ["hf:owner/repo", "hf:", "hf:owner//file", "hf:a/b/../../../etc/passwd", "hf:a/b/c\\d", "hf:./b/c"])
def test_malformed_hub_names(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="hf:owner/repo/file"):
        find_model(name)


@pytest.mark.parametrize("name", ["hf:a/b/" + "c" * 240, "hf:a/b/c\ud800.gguf", "hf:a/b/c\n.gguf"])
def test_hub_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="check the name"):
        find_model(name)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match="smollm2-135m, gemma3-270m"):
        find_model("gpt-5")


def test_resolving(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    with pytest.raises(ModelFileError, match="edgelm pull smollm2-135m"):
        resolve_model("smollm2-135m", settings)
    file = settings.models / CATALOGUE["smollm2-135m"].file
    file.parent.mkdir(parents=True)
    file.touch()
    assert resolve_model("smollm2-135m", settings) == file
    assert resolve_model(str(file), settings) == file
    assert resolve_model(tmp_path, settings) == tmp_path
    for missing in (tmp_path / "smollm2-135m", "models/none.gguf", "none.gguf"):
        with pytest.raises(ModelFileError, match="no model file or folder"):
            resolve_model(missing, settings)
    with pytest.raises(ModelFileError, match=r"edgelm pull hf:a/b/c\.gguf"):
        resolve_model("hf:a/b/c.gguf", settings)


@pytest.mark.parametrize("path", ["~no-such-user/model.gguf", "a" * 5000])
def test_paths_that_cannot_be_looked_up(path: str) -> None:
    with pytest.raises(ModelFileError, match="check the path"):
        resolve_model(path)
    with pytest.raises(ModelFileError, match="check the path"):
        is_path(path)


def test_no_path_at_all() -> None:
    assert not is_path("")
    with pytest.raises(InvalidRequestError, match="no model is called ''"):
        resolve_model("")


def test_settings_from_the_environment(tmp_path: Path) -> None:
    settings = read_settings({"EDGELM_HOME": str(tmp_path), "HF_ENDPOINT": "https://mirror.example/", "HF_TOKEN": "secret"})
    assert settings.models == tmp_path / "models"
    assert settings.egress_log == tmp_path / "state" / "egress.jsonl"
    assert settings.budget.parent == settings.state
    assert settings.hub_endpoint == "https://mirror.example"
    assert settings.hub_token == "secret"
    assert "secret" not in repr(settings)
    assert read_settings({}).hub_endpoint == "https://huggingface.co"
    assert read_settings({}).home.is_absolute()
    assert read_settings({}).state.is_absolute()
    assert not read_settings({}).state.is_relative_to(read_settings({}).home)  # emptying a cache must not lose it
    with pytest.raises(InvalidRequestError, match="HF_ENDPOINT"):
        read_settings({"HF_ENDPOINT": "mirror"})
    with pytest.raises(InvalidRequestError, match="EDGELM_HOME"):
        read_settings({"EDGELM_HOME": "~no-such-user/models"})
    for token in ("sécret", "sec\nret"):
        with pytest.raises(InvalidRequestError, match="HF_TOKEN") as raised:
            read_settings({"HF_TOKEN": token})
        assert "cret" not in str(raised.value)
    assert read_settings({"HF_TOKEN": "secret\n"}).hub_token == "secret"
