"""Greedy text is what it was, and what float32 arithmetic says it should be, but for ties within the noise of int8."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgelm import LLM
from edgelm.bench.llamacpp_peer import LlamaCppPeer

MODELS = {"smollm2-135m": "smollm2_path", "gemma3-270m": "gemma3_path"}


def load_recipe() -> ModuleType:
    """greedy.py beside this file, which wrote the stored texts."""
    spec = importlib.util.spec_from_file_location("greedy", Path(__file__).with_name("greedy.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECIPE = load_recipe()
STORED: dict[str, list[dict[str, Any]]] = json.loads(RECIPE.FILE.read_text(encoding="utf-8"))


def centered(logits: np.ndarray) -> np.ndarray:
    """Logits less their mean, which has no meaning."""
    return np.asarray(logits - logits.mean(axis=-1, keepdims=True))


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text(name: str, request: pytest.FixtureRequest, float_file: Callable[[Path], Path]) -> None:
    path: Path = request.getfixturevalue(MODELS[name])
    assert [one["prompt"] for one in STORED[name]] == list(RECIPE.PROMPTS)
    judge = LlamaCppPeer(float_file(path), n_threads=2, n_ctx=128, kv_type="f32", flash_attention=False)
    with LLM(path, n_ctx=128) as llm:
        for stored in STORED[name]:
            prompt, tokens = stored["prompt_tokens"], np.array(stored["tokens"])
            # logits of engine and judge before each stored token
            context = [*prompt, *stored["tokens"][:-1]]
            ours = centered(llm.logits(context)[len(prompt) - 1 :])
            exact = centered(judge.logits(context)[len(prompt) - 1 :])
            noise = float(np.std(ours - exact))
            assert noise < 0.25
            rows = np.arange(len(tokens))
            lead = exact.max(axis=1) - exact[rows, tokens]
            assert (lead < 5 * noise).all(), f"{stored['prompt']!r}: a stored token is not the judge's, by more than the noise"
            assert (lead == 0).mean() > 0.9
            found = RECIPE.greedy(llm, stored["prompt"])
            assert found["prompt_tokens"] == prompt
            same = np.array(found["tokens"]) == tokens
            if not same.all():  # another CPU may round a near tie the other way; from there on the texts are free to differ
                first = int(np.argmin(same))
                assert ours[first].max() - ours[first, tokens[first]] < 0.01, f"{stored['prompt']!r} differs at token {first}"
            else:
                assert found["text"] == stored["text"]
    judge.close()
