"""Quantize a model and ask the new file a question.

The default model has 4-bit blocks already, which are copied; only its embedding, of 8 bits, changes here. Of a float model all would:
`quantize("path/to/model", "out.gguf", format="q4_0", calibration="text.txt")`.

python examples/quantize_a_model.py
"""

import tempfile
from pathlib import Path

from edgelm import LLM, quantize

with tempfile.TemporaryDirectory() as place:
    report = quantize("smollm2-135m", Path(place) / "smaller.gguf", format="q4_1", embedding_format="q4_0")
    for tensor in report.tensors:
        if tensor.error is not None:
            print(f"{tensor.name}: {tensor.source} to {tensor.format}, {tensor.error:.2%} of its power lost")
    print(f"{report.n_bytes / 1e6:.0f} MB, {report.bits_per_weight:.2f} bits per weight")
    with LLM(report.target) as llm:
        print(llm.chat([{"role": "user", "content": "Name the capital of France."}], temperature=0, max_tokens=20).text)
