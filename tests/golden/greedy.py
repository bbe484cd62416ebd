"""Greedy texts of the CPU engine, stored so that a change in any of them is seen.

python tests/golden/greedy.py       writes greedy.json anew, for a change that was meant
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgelm import LLM
from edgelm.runtime.download import pull

FILE = Path(__file__).with_suffix(".json")
MODELS = ("smollm2-135m", "gemma3-270m")
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "The three most important things about health are",
    "In 1969, the first man",
)
N_TOKENS = 64


def greedy(llm: LLM, prompt: str) -> dict[str, Any]:
    """The prompt, its tokens, and the N_TOKENS tokens and the text that follow at temperature 0."""
    done = llm.generate(prompt, temperature=0, max_tokens=N_TOKENS, ignore_eos=True)
    tokens = llm.tokenize(prompt, add_special=True)
    return {"prompt": prompt, "prompt_tokens": tokens, "tokens": list(done.token_ids), "text": done.text}


def main() -> None:
    texts = {}
    for name in MODELS:
        with LLM(pull(name)) as llm:
            texts[name] = [greedy(llm, prompt) for prompt in PROMPTS]
    FILE.write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
