"""Real models for the tests that need one; they are pulled once into the user's cache folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgelm.backends.cpu.engine import kernel_folder
from edgelm.bench.dequantize import write_dequantized
from edgelm.runtime.download import pull
from edgelm.runtime.settings import read_settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """edgelm's folder for one test. Only compiled kernels are the user's: compiling them again would take many seconds."""
    kernels = kernel_folder(read_settings().home)
    kernels.mkdir(parents=True, exist_ok=True)
    own = tmp_path / "home"
    own.mkdir()
    (own / "kernels").symlink_to(kernels, target_is_directory=True)
    monkeypatch.setenv("EDGELM_HOME", str(own))
    return own


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1: llama architecture, byte-level BPE, ChatML template."""
    return pull("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma-3-270M Q4_K_M: gemma3 architecture, SentencePiece-style vocabulary of 262,144 tokens."""
    return pull("gemma3-270m")


@pytest.fixture(scope="session")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Gives the file with a model's weights as float32, written at most once in a session."""
    folder = tmp_path_factory.mktemp("float32")

    def write(model: Path) -> Path:
        target = folder / model.name
        if not target.exists():
            write_dequantized(model, target)
        return target

    return write
