"""Export the default model to ONNX, and ask the exported folder a question with ONNX Runtime.

python examples/export_to_onnx.py "Name the capital of France."
"""

import sys
import tempfile
from pathlib import Path

from edgelm import LLM, export

question = sys.argv[1] if len(sys.argv) > 1 else "Name the capital of France."

with tempfile.TemporaryDirectory() as place:
    report = export("smollm2-135m", Path(place) / "smollm2-onnx", n_ctx=1024)
    for row in report.formats:
        print(f"{row.format} ({row.n_matrices}): {row.stored}, {'exact' if row.exact else 'requantized'}")
    with LLM(report.folder, backend="onnx") as llm:
        print(llm.chat([{"role": "user", "content": question}], temperature=0, max_tokens=40).text)
