"""Fixtures of the runtime's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from byte_model import MakeLLM, byte_metadata
from tiny_models import write_tiny

from edgelm.backends.scripted import Script, ScriptedBackend
from edgelm.runtime.calibration_text import EVERYDAY, NOVEL
from edgelm.runtime.llm import LLM
from edgelm.runtime.quantize import quantize
from edgelm.runtime.quantize_report import QuantizeReport
from edgelm.runtime.tokenizer import Tokenizer


@pytest.fixture
def make_llm() -> Iterator[MakeLLM]:
    """Makes (LLM, backend) of a script; every sequence must have been freed when the test is over."""
    backends: list[ScriptedBackend] = []

    def make(script: Script, n_ctx: int = 128, **changes: Any) -> tuple[LLM, ScriptedBackend]:
        metadata = {key: value for key, value in byte_metadata(**changes).items() if value is not None}
        backend = ScriptedBackend(script, n_vocab=258, n_ctx=n_ctx)
        backends.append(backend)
        return LLM.from_parts(backend, Tokenizer.from_metadata(metadata), metadata), backend

    yield make
    assert all(not backend.sequences for backend in backends)


@pytest.fixture(scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    """What a process wrote survives its death even if it is not on the disk yet; so waiting only takes time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 6,000 tokens of a tiny model."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(NOVEL + EVERYDAY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama", format="F16", embedding_format="F16")


@pytest.fixture(scope="module")
def quantized(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizeReport]:
    out = tmp_path_factory.mktemp("quantized") / "q4_0.gguf"
    return out, quantize(tiny, out, calibration=text, calibration_tokens=1024, n_threads=1)
