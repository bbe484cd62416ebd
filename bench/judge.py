"""How much of a model's answer int8 activations cost, judged by llama.cpp on the same weights in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.registry import open_backend
from edgelm.bench.dequantize import write_dequantized
from edgelm.bench.llamacpp_peer import LlamaCppPeer
from edgelm.bench.runner import BackendRunner
from edgelm.errors import InvalidRequestError
from edgelm.quant.divergence import Divergence, divergence


@dataclass(frozen=True)
class Judgement:
    """Divergences from the float32 judge of edgelm, by precision, and of llama.cpp, all on the quantized file."""

    backend: str
    edgelm: dict[str, Divergence]
    llamacpp: Divergence


def judge(
    model: Path,
    text: str,
    n_tokens: int,
    precisions: Sequence[str],
    n_threads: int,
    progress: Callable[[str], None],
    judge_file: Path | None = None,
    backend: str = "cpu",
    exported: Path | None = None,
) -> Judgement:
    """Compare on the text's first n_tokens tokens.

    Args:
        precisions: of edgelm's activations, "int8" or "f32".
        judge_file: the model with float32 weights; written there if it does not exist, and kept. None for a temporary one.
        backend: edgelm's engine.
        exported: a folder exported from the model, which is then what edgelm computes with, in the folder's own precision.

    Raises:
        InvalidRequestError: the text has fewer tokens.
        EdgeLMError: as the engines find the model.
    """
    with tempfile.TemporaryDirectory(prefix="edgebench-") as folder:
        float_file = judge_file or Path(folder) / "judge.gguf"
        if not float_file.exists():
            progress(f"writing {model.name} with float32 weights")
            write_dequantized(model, float_file)
        progress("llama.cpp on the float32 weights")
        peer = LlamaCppPeer(float_file, n_threads, n_ctx=n_tokens, kv_type="f32", flash_attention=False)
        try:
            tokens = _first_tokens(peer, text, n_tokens)
            wanted = peer.logits(tokens)
        finally:
            peer.close()
    progress("llama.cpp on the quantized weights")
    peer = LlamaCppPeer(model, n_threads, n_ctx=n_tokens)
    try:
        theirs = divergence(wanted, peer.logits(tokens))
    finally:
        peer.close()
    ours = {}
    for wish in (None,) if exported else precisions:
        progress(f"edgelm ({backend}) on {exported.name if exported else 'the quantized weights'}, {wish or 'its own precision'}")
        n_ctx = None if exported else n_tokens
        engine = open_backend(backend, exported or model, n_threads=n_threads, n_ctx=n_ctx, precision=wish, progress=progress)
        runner = BackendRunner(engine)
        try:
            ours[engine.info.precision] = divergence(wanted, runner.logits(tokens))
        finally:
            runner.close()
    return Judgement(backend, ours, theirs)


def _first_tokens(peer: LlamaCppPeer, text: str, n_tokens: int) -> NDArray[np.int32]:
    tokens = peer.tokenize(text, add_special=True)
    if n_tokens < 1 or len(tokens) < n_tokens:
        raise InvalidRequestError(f"the text has {len(tokens)} tokens, but {n_tokens} were asked for; give a longer text or fewer tokens")
    return np.array(tokens[:n_tokens], np.int32)
