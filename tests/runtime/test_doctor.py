"""`edgelm doctor` tells of every backend and every execution provider whether it is there, or why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import write_tiny

from edgelm.backends.onnx.provider_table import PROVIDERS
from edgelm.backends.registry import engine_names
from edgelm.runtime.commands.doctor import doctor
from edgelm.runtime.commands.inspect import inspect
from edgelm.runtime.export import export


def test_every_backend_and_provider_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    for name in [*(f"backend {name}" for name in engine_names()), *(f"ONNX provider {name}" for name in PROVIDERS)]:
        assert lines[name].strip().startswith(("available: ", "not available: ")), name
    assert "onnxruntime " in lines["ONNX provider cpu"]
    assert "; devices: CPU" in lines["ONNX provider cpu"]
    assert "only Android can have it" in lines["ONNX provider nnapi"]
    assert "deleting them is safe" in lines["ONNX exports"]


def test_a_model_is_opened_and_its_nodes_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", "llama", format="Q4_0", n_ctx=64)
    export(model, tmp_path / "folder")
    doctor(str(tmp_path / "folder"))
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert lines["backend"].strip().startswith("onnx, ")
    n_nodes, by = lines["nodes computed"].strip().split(" ", 1)
    assert int(n_nodes) > 20
    assert by == "by cpu"
    doctor(str(model), backend="cpu")
    assert "nodes computed" not in capsys.readouterr().out


def test_inspect_shows_what_was_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(write_tiny(tmp_path / "tiny.gguf", "llama", n_ctx=64), tmp_path / "folder", target="nnapi", n_ctx=48, chunk=8)
    capsys.readouterr()
    inspect(str(tmp_path / "folder"))
    shown = capsys.readouterr().out
    for part in ("to ONNX for nnapi by edgelm", "prefill.onnx (8 tokens), decode.onnx (1 tokens)", "48 tokens", "<|im_end|>"):
        assert part in shown
