"""What quantized files hold and predict, and the command that makes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.backends.reference import ReferenceModel
from edgelm.quant.divergence import divergence
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.open_model import open_model
from edgelm.runtime.calibration_text import NOVEL
from edgelm.runtime.tokenizer import Tokenizer

Array = np.ndarray[Any, Any]


def values(path: Path) -> dict[str, Array]:
    file = open_model(path)
    try:
        return {name: tensor.dequantize() for name, tensor in file.tensors.items()}
    finally:
        file.close()


def tokens(path: Path) -> Array:
    """Of the calibration text's first window, for only there is a tiny random model's quantization sure to be better than rounding."""
    return np.array(Tokenizer.from_gguf(path).encode(NOVEL)[:120], np.int32)


def logits(path: Path) -> Array:
    with GGUFFile(path) as file:
        return ReferenceModel(file).logits(tokens(path))


def kl(judge: Path, other: Path) -> float:
    return divergence(logits(judge), logits(other)).mean_kl


def edgelm(*arguments: str | Path, code: int = 0, limit: int | None = None) -> tuple[str, str]:
    """Run the command in a process of its own, which may write files of `limit` bytes."""
    limited = "" if limit is None else f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    command = (sys.executable, "-c", f"{limited}from edgelm.runtime.cli import main; main()", *map(str, arguments))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def assert_nothing_made(out: Path) -> None:
    assert not out.exists()
    assert not list(out.parent.glob("*.partial"))
