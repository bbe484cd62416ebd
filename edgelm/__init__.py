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
    from edgelm.runtime.privacy import Level
    from edgelm.runtime.quantize import quantize
    from edgelm.runtime.quantize_report import QuantizeReport
    from edgelm.runtime.results import Completion, Delta, Timings, TokenLogprob
    from edgelm.runtime.router.cloud import CloudEndpoint
    from edgelm.runtime.router.policy import Policy
    from edgelm.runtime.router.routed_llm import RoutedAnswer, RoutedLLM
    from edgelm.runtime.router.router import Router
    from edgelm.runtime.router.strategy import Strategy
    from edgelm.runtime.sampling import SamplingParams
    from edgelm.runtime.tokenizer import Tokenizer

__all__ = [
    "LLM",
    "CalibrateReport",
    "CloudEndpoint",
    "Completion",
    "Delta",
    "EdgeLMError",
    "Form",
    "Level",
    "Policy",
    "QuantizeReport",
    "RoutedAnswer",
    "RoutedLLM",
    "Router",
    "SamplingParams",
    "Strategy",
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
    "Level": "edgelm.runtime.privacy",
    "CloudEndpoint": "edgelm.runtime.router.cloud",
    "Policy": "edgelm.runtime.router.policy",
    "RoutedAnswer": "edgelm.runtime.router.routed_llm",
    "RoutedLLM": "edgelm.runtime.router.routed_llm",
    "Router": "edgelm.runtime.router.router",
    "Strategy": "edgelm.runtime.router.strategy",
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
