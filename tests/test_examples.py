"""Every example runs as a user would run it, and shows what it says it shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SHOWS = {
    "answer_here_first.py": ["[local: ", "[cloud: ", "replaced {'EMAIL': 1}", "2 records, all whole"],
    "ask_the_server.py": ["The capital of France is Paris.", 'As JSON: "'],
    "async_answers.py": ["Name a river in Europe. ", "The endless story was stopped."],
    "export_to_onnx.py": ["Q4_1 (210): 4-bit codes", "exact", "The capital of France is Paris."],
    "likely_next_words.py": ["%  The capital of France is Paris"],
    "measure_engines.py": ["cpu: ", "llamacpp: ", "ratio ", "energy "],
    "quantize_a_model.py": ["token_embd.weight: Q8_0 to Q4_0", "84 MB, ", "The capital of France is Paris."],
    "stream_chat.py": ["light", "tokens/s]"],
    "which_is_likelier.py": ["cup of gravel."],
}


def test_every_example_is_here() -> None:
    assert sorted(SHOWS) == sorted(file.name for file in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", sorted(SHOWS))
def test_example(name: str, smollm2_path: Path) -> None:
    assert smollm2_path.is_file()
    done = subprocess.run([sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for text in SHOWS[name]:
        assert text in done.stdout
    if name == "which_is_likelier.py":
        assert done.stdout.splitlines()[0].endswith("cup of tea.")
        assert done.stdout.splitlines()[-1].endswith("put she.")
