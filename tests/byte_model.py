"""A model without weights: a byte tokenizer and a backend that says what it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgelm.backends.scripted import ScriptedBackend
from edgelm.runtime.llm import LLM

END, BEGIN = 256, 257
CHATML = (
    "{% for m in messages %}<|begin|>{{ m.role }}:{{ m.content }}\n{% endfor %}"
    "{% if tools %}tools={{ tools | length }}\n{% endif %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def byte_metadata(**changes: Any) -> dict[str, Any]:
    """A vocabulary of the 256 bytes (token = byte), an end and a beginning."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*letters, "<|end|>", "<|begin|>"],
        "tokenizer.ggml.token_type": np.array([1] * 256 + [3, 3], np.int32),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.bos_token_id": BEGIN,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": CHATML,
        **changes,
    }


def says(text: str) -> list[int]:
    """A script that says the text and ends."""
    return [*text.encode(), END]


MakeLLM = Callable[..., tuple[LLM, ScriptedBackend]]
