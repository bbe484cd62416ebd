"""Opening engines by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_tiny

from edgelm.backends.base import Chunk
from edgelm.backends.registry import ENGINES, engine_names, find_engine, open_backend, unavailable_reason
from edgelm.backends.scripted import ScriptedBackend
from edgelm.errors import BackendUnavailableError, InvalidRequestError, UnsupportedModelError
from edgelm.quant.exported_folder import GraphFile, Manifest, write_manifest, write_metadata


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"'gpu'; edgelm has cpu, llamacpp, onnx"):
        open_backend("gpu", tmp_path)


def test_unknown_precision(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="int8, f32"):
        open_backend("cpu", tmp_path, precision="int3")


@pytest.mark.parametrize("wrong", [{"n_threads": 0}, {"n_ctx": -5}, {"n_threads": 100_000}])
def test_counts_must_make_sense(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidRequestError, match=r"at (least 1|most 1024)\b"):
        open_backend("cpu", tmp_path, **wrong)  # type: ignore[arg-type]


def test_every_engine_is_either_available_or_has_a_reason() -> None:
    for name in ENGINES:
        reason = unavailable_reason(name)
        assert reason is None or "not installed" in reason


def test_options_of_the_engine(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"'cpu' has no option 'colour'; it has none"):
        open_backend("cpu", tmp_path, options={"colour": "red"})


def test_an_export_is_for_the_onnx_engine(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    config = {"block_count": 1, "embedding_length": 8, "attention.head_count": 1, "feed_forward_length": 8, "context_length": 8}
    metadata = {f"llama.{key}": value for key, value in config.items()} | {"llama.attention.layer_norm_rms_epsilon": 1e-5}
    write_metadata(tmp_path, {"general.architecture": "llama", **metadata})
    write_manifest(tmp_path, Manifest("cpu", 8, "f32", "f32", (GraphFile("model.onnx"),)))
    with pytest.raises(UnsupportedModelError, match="exported to ONNX; open it with the backend 'onnx'"):
        open_backend("cpu", tmp_path)


PLUGIN = """PLUGIN = None
from dataclasses import dataclass
from edgelm.backends.registry import Engine
from edgelm.backends.scripted import ScriptedBackend

@dataclass(frozen=True)
class EchoOptions:
    token: int = 1

class EchoBackend(ScriptedBackend):
    def __init__(self, file, *, n_threads, n_ctx, precision, progress, cache_folder, options):
        file.close()
        super().__init__([options.token], n_vocab=9, n_ctx=n_ctx or 8)

ROW = Engine("echo_engine:EchoBackend", options="echo_engine:EchoOptions", summary="says one token")
NEEDY = Engine("echo_engine:EchoBackend", needs=("no_such_module",), advice="pip install echo[more]")
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package called echo, installed: a module, and metadata with entry points."""
    site = tmp_path / "site"
    info = site / "echo-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "echo_engine.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo\nVersion: 1.0\n")
    lines = [
        "echo = echo_engine:ROW",
        "needy = echo_engine:NEEDY",
        "cpu = echo_engine:ROW",
        "gone = echo_engine:GONE",
        "odd = echo_engine:PLUGIN",
    ]
    (info / "entry_points.txt").write_text("[edgelm.backends]\n" + "\n".join(lines))
    monkeypatch.syspath_prepend(str(site))
    return site


@pytest.mark.usefixtures("plugin")
def test_another_package_adds_an_engine(tmp_path: Path) -> None:
    assert engine_names() == ("cpu", "llamacpp", "onnx", "echo", "gone", "needy", "odd")
    assert unavailable_reason("echo") is None
    backend = open_backend("echo", write_tiny(tmp_path / "tiny.gguf", "llama"), n_ctx=5, options={"token": "7"})
    assert isinstance(backend, ScriptedBackend)
    assert backend.forward([Chunk(1, np.array([3], np.int32))]).argmax() == 7
    with pytest.raises(InvalidRequestError, match=r"'echo' has no option 'tok'; it has token"):
        open_backend("echo", tmp_path, options={"tok": 1})


@pytest.mark.usefixtures("plugin")
def test_edgelms_own_engines_keep_their_names() -> None:
    assert find_engine("cpu") is ENGINES["cpu"]


@pytest.mark.usefixtures("plugin")
def test_what_is_missing_or_broken_is_said(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"'needy' cannot be used: no_such_module not installed; pip install echo\[more\]"):
        open_backend("needy", tmp_path)
    for name, message in (("gone", "'gone' of echo cannot be loaded"), ("odd", "'odd' of echo")):
        with pytest.raises(BackendUnavailableError, match=message):
            open_backend(name, tmp_path)


def test_two_packages_with_one_name_are_refused(plugin: Path) -> None:
    info = plugin / "rival-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgelm.backends]\necho = echo_engine:ROW\n")
    with pytest.raises(BackendUnavailableError, match=r"several packages add a backend 'echo' \((echo, rival|rival, echo)\)"):
        find_engine("echo")
