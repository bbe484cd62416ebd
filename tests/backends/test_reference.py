"""The reference forward pass against llama.cpp, on a tiny model of every architecture and variation."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import FORMATS, VARIANTS, write_tiny, write_variant

from edgelm.backends.reference import ReferenceModel
from edgelm.bench.llamacpp_peer import LlamaCppPeer
from edgelm.errors import InvalidRequestError
from edgelm.quant.gguf_file import GGUFFile

TOKENS = np.random.default_rng(1).integers(3, 280, 120).astype(np.int32)


def reference_logits(path: Path, n_ctx: int = 512) -> NDArray[np.float32]:
    with GGUFFile(path) as file:
        return ReferenceModel(file, n_ctx).logits(TOKENS)


def llamacpp_logits(path: Path, n_ctx: int = 512) -> NDArray[np.float32]:
    peer = LlamaCppPeer(path, 1, n_ctx=n_ctx, kv_type="f32", flash_attention=False)
    try:
        return peer.logits(TOKENS)
    finally:
        peer.close()


def relative_difference(logits: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    assert logits.shape == wanted.shape
    return float(np.abs(logits - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_llamacpp(tmp_path: Path, variant: str) -> None:
    path = write_variant(tmp_path / "m.gguf", variant)
    # llama.cpp looks gelu up in a float16 table, which is where the gemma variants differ from float32.
    bound = 1e-3 if variant.startswith("gemma") else 2e-5
    assert relative_difference(reference_logits(path), llamacpp_logits(path)) < bound


@pytest.mark.parametrize("n_ctx", [256, 512])
def test_longrope_equals_llamacpp_within_and_beyond_the_original_context(tmp_path: Path, n_ctx: int) -> None:
    path = write_variant(tmp_path / "m.gguf", "phi3-longrope")
    assert relative_difference(reference_logits(path, n_ctx), llamacpp_logits(path, n_ctx)) < 2e-5


@pytest.mark.parametrize("tensor_format", FORMATS)
def test_every_format_runs_near_llamacpp(tmp_path: Path, tensor_format: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama", format=tensor_format, embedding_format="Q8_0")
    # llama.cpp rounds activations to int8, or to the weights' own float type, so only near.
    assert relative_difference(reference_logits(path), llamacpp_logits(path)) < 0.06


def test_logits_do_not_depend_on_later_tokens(tmp_path: Path) -> None:
    with GGUFFile(write_tiny(tmp_path / "m.gguf", "gemma3")) as file:
        model = ReferenceModel(file)
        np.testing.assert_allclose(model.logits(TOKENS[:30]), model.logits(TOKENS[:60])[:30], atol=1e-4)


@pytest.mark.parametrize("token", [-1, 288])
def test_a_token_outside_the_vocabulary_is_refused(tmp_path: Path, token: int) -> None:
    with GGUFFile(write_tiny(tmp_path / "m.gguf", "llama")) as file, pytest.raises(InvalidRequestError, match="288"):
        ReferenceModel(file).logits(np.array([5, token], np.int32))
