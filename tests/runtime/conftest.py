"""Fixtures of the runtime's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from byte_model import MakeLLM, byte_metadata

from edgelm.backends.scripted import Script, ScriptedBackend
from edgelm.runtime.llm import LLM
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
