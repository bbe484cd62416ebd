from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_tiny

from edgelm.backends.reference import ReferenceModel
from edgelm.bench.dequantize import write_dequantized
from edgelm.bench.llamacpp_peer import LlamaCppPeer
from edgelm.errors import ModelFileError
from edgelm.quant.gguf_file import GGUFFile

TOKENS = np.arange(40, 90, dtype=np.int32)


@pytest.mark.parametrize("tensor_format", ["Q4_1", "Q6_K", "BF16"])
def test_values_and_metadata_stay_the_same(tmp_path: Path, tensor_format: str) -> None:
    quantized = write_tiny(tmp_path / "q.gguf", "qwen2", format=tensor_format, embedding_format="Q8_0")
    write_dequantized(quantized, tmp_path / "f.gguf")
    with GGUFFile(quantized) as before, GGUFFile(tmp_path / "f.gguf") as after:
        assert list(before.metadata) == list(after.metadata)
        for key, value in before.metadata.items():
            np.testing.assert_array_equal(after.metadata[key], value)
        assert list(before.tensors) == list(after.tensors)
        for name, tensor in before.tensors.items():
            assert after.tensors[name].format.name == "F32"
            np.testing.assert_array_equal(after.tensors[name].dequantize(), tensor.dequantize())


def test_llamacpp_judges_the_file(tmp_path: Path) -> None:
    quantized = write_tiny(tmp_path / "q.gguf", "llama", format="Q4_0", embedding_format="Q8_0")
    write_dequantized(quantized, tmp_path / "f.gguf")
    peer = LlamaCppPeer(tmp_path / "f.gguf", 1, n_ctx=64, kv_type="f32", flash_attention=False)
    wanted = peer.logits(TOKENS)
    peer.close()
    with GGUFFile(quantized) as file:
        np.testing.assert_allclose(ReferenceModel(file).logits(TOKENS), wanted, atol=1e-4)


def test_a_source_that_is_no_model_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match=r"bad\.gguf"):
        write_dequantized(tmp_path / "bad.gguf", tmp_path / "f.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["bad.gguf"]
