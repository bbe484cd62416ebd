"""`edgelm doctor` tells of every backend and every execution provider whether it is there, or why not."""

from __future__ import annotations

import pytest

from edgelm.backends.onnx.provider_table import PROVIDERS
from edgelm.backends.registry import engine_names
from edgelm.runtime.commands.doctor import doctor


def test_every_backend_and_provider_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    for name in [*(f"backend {name}" for name in engine_names()), *(f"ONNX provider {name}" for name in PROVIDERS)]:
        assert lines[name].strip().startswith(("available: ", "not available: ")), name
    assert "onnxruntime " in lines["ONNX provider cpu"]
    assert "; devices: CPU" in lines["ONNX provider cpu"]
    assert "only Android can have it" in lines["ONNX provider nnapi"]
    assert "deleting them is safe" in lines["ONNX exports"]
