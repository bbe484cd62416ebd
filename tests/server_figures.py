"""Figures of docs/server.md that edgebench does not measure. Run by hand, on a quiet machine.

python tests/server_figures.py prefix URL TEXT_FILE      TTFT of two requests with the same 1,500 tokens, at a running server
python tests/server_figures.py forms MODEL               answers held to a form beside free ones, alone, at temperature 0
python tests/server_figures.py forms-at-once URL         the same, 16 at once, at a running server, at the default temperature
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from edgelm import LLM, Form, SamplingParams

ROUNDS = 12
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}}},
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PEOPLE: dict[str, Any] = {"type": "array", "items": PERSON, "minItems": 30}
STORY = {
    "type": "object",
    "properties": {"story": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["story", "n"],
    "additionalProperties": False,
}


def time_to_first_token(http: httpx.Client, system: str, question: str) -> tuple[float, int]:
    """Seconds, and how many tokens of the prompt came from the cache."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    body = {"messages": messages, "max_tokens": 5, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    begin, first, n_cached = time.perf_counter(), 0.0, 0
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if not chunk["choices"]:
                n_cached = chunk["usage"]["prompt_tokens_details"]["cached_tokens"]
            elif chunk["choices"][0]["delta"].get("content"):
                first = first or time.perf_counter() - begin
    return first, n_cached


def prefix(url: str, text_file: str) -> None:
    text = Path(text_file).read_text(encoding="utf-8")
    with httpx.Client(base_url=url, timeout=120) as http:
        time_to_first_token(http, "warm up", "hello")
        for i in range(4):
            system = text[20_000 * i :][:6300]
            first, _ = time_to_first_token(http, system, "Who is speaking?")
            second, n_cached = time_to_first_token(http, system, "What happened before, and why?")
            print(f"first {first * 1e3:.0f} ms, second {second * 1e3:.0f} ms ({n_cached} tokens cached): {second / first:.1%}")


def forms(model: str) -> None:
    messages = [{"role": "user", "content": "Write a long story as JSON."}]
    held = {"people": Form.json_schema(PEOPLE), "story": Form.json_schema(STORY), "any text": Form("regex", "(.|\n)*")}
    free = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    with LLM(model) as llm:

        def speed(params: SamplingParams) -> float:
            return float(llm.chat(messages, params).timings.tokens_per_second)

        params = {name: SamplingParams(temperature=0, max_tokens=200, form=form) for name, form in held.items()}
        for each in (free, *params.values()):
            speed(each)
        ratios: dict[str, list[float]] = {name: [] for name in held}
        for _ in range(ROUNDS):
            for name, each in params.items():
                before, with_form, after = speed(free), speed(each), speed(free)
                ratios[name].append(2 * with_form / (before + after))
    for name, values in ratios.items():
        print(f"{name}: held/free {median(values):.3f} (median of {ROUNDS}; {min(values):.2f} to {max(values):.2f})")


def forms_at_once(url: str) -> None:
    def speed(first: int, fields: dict[str, Any]) -> float:
        def ask(i: int) -> int:
            body = {"messages": [{"role": "user", "content": f"List number {first + i} of people as JSON."}], "max_tokens": 100, "seed": i}
            with httpx.Client(base_url=url, timeout=120) as http:
                return int(http.post("/v1/chat/completions", json=body | fields).json()["usage"]["completion_tokens"])

        begin = time.perf_counter()
        with ThreadPoolExecutor(16) as pool:
            n_tokens = sum(pool.map(ask, range(16)))
        return n_tokens / (time.perf_counter() - begin)

    free = {"ignore_eos": True}
    held = {"response_format": {"type": "json_schema", "json_schema": {"name": "people", "schema": PEOPLE}}}
    speed(0, held)
    ratios = []
    for i in range(1, ROUNDS + 1):
        before, with_form, after = speed(1000 * i, free), speed(1000 * i, held), speed(1000 * i, free)
        ratios.append(2 * with_form / (before + after))
    print(f"16 at once: held/free {median(ratios):.3f} (median of {ROUNDS}; {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    {"prefix": prefix, "forms": forms, "forms-at-once": forms_at_once}[sys.argv[1]](*sys.argv[2:])
