"""edgelm: quantized language models on the device you already have.

    from edgelm import LLM

    with LLM("smollm2-135m") as llm:
        for delta in llm.chat([{"role": "user", "content": "Why is the sky blue?"}], stream=True):
            print(delta.text, end="", flush=True)

The names below are the public ones; they are imported on first use, so that `import edgelm` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from edgelm.errors import EdgeLMError
from edgelm.version import __version__

if TYPE_CHECKING:
    from edgelm.runtime.calibrate import CalibrateReport, calibrate
    from edgelm.runtime.export import export
    from edgelm.runtime.form import Form
    from edgelm.runtime.llm import LLM
    from edgelm.runtime.quantize import quantize
    from edgelm.runtime.quantize_report import QuantizeReport
    from edgelm.runtime.results import Completion, Delta, Timings, TokenLogprob
    from edgelm.runtime.sampling import SamplingParams
    from edgelm.runtime.tokenizer import Tokenizer

__all__ = [
    "LLM",
    "CalibrateReport",
    "Completion",
    "Delta",
    "EdgeLMError",
    "Form",
    "QuantizeReport",
    "SamplingParams",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "__version__",
    "calibrate",
    "export",
    "quantize",
]

_HOME = {
    "LLM": "edgelm.runtime.llm",
    "Completion": "edgelm.runtime.results",
    "Delta": "edgelm.runtime.results",
    "Timings": "edgelm.runtime.results",
    "TokenLogprob": "edgelm.runtime.results",
    "Form": "edgelm.runtime.form",
    "SamplingParams": "edgelm.runtime.sampling",
    "Tokenizer": "edgelm.runtime.tokenizer",
    "CalibrateReport": "edgelm.runtime.calibrate",
    "calibrate": "edgelm.runtime.calibrate",
    "export": "edgelm.runtime.export",
    "QuantizeReport": "edgelm.runtime.quantize_report",
    "quantize": "edgelm.runtime.quantize",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'edgelm' has no attribute {name!r}")
