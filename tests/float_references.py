"""Float models to quantize: no float English model is on the package registries, so they are made from the quantized ones.

    python tests/float_references.py dithered SOURCE.gguf OUT.gguf       # SmolLM2: weights off their 4-bit grid, function unchanged
    python tests/float_references.py dequantized SOURCE.gguf OUT.gguf    # Gemma: its values as float32

A model whose weights lie on a 4-bit grid is no reference, since quantizing it again to the same grid shows no error. The dithered one has
every linear layer's input channels multiplied by exp(0.15 N(0, 1)) and the inverse folded into what feeds them: the norm before q, k, v and
before gate, up; the rows of v before the attention's output; the rows of up before down.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.bench.dequantize import write_dequantized
from edgelm.quant.blocks import F16, F32
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.gguf_header import read_header
from edgelm.quant.gguf_writer import TensorSource, write_gguf

SPREAD = 0.15
SEED = 20260117
Array = NDArray[np.float32]


def write_dithered(source: Path, target: Path) -> None:
    """Write a model of the llama architecture as float16, with its input channels scaled at random and its function unchanged."""
    rng = np.random.default_rng(SEED)
    with GGUFFile(source) as file:
        tensors = {name: tensor.dequantize() for name, tensor in file.tensors.items()}
        group = file.metadata["llama.attention.head_count"] // file.metadata["llama.attention.head_count_kv"]
        head_dim = file.metadata["llama.embedding_length"] // file.metadata["llama.attention.head_count"]
        for layer in range(file.metadata["llama.block_count"]):
            _dither_layer(tensors, f"blk.{layer}.", group, head_dim, rng)
        data = source.read_bytes()
        header = read_header(data, source)
    sources = []
    for name, values in tensors.items():
        stored = F32 if values.ndim == 1 else F16
        sources.append(TensorSource(name, values.shape, stored, lambda v=values, f=stored: [f.quantize(v)]))
    write_gguf(target, data[header.metadata_start : header.metadata_end], header.n_entries, sources, header.alignment)


def _dither_layer(tensors: dict[str, Array], prefix: str, group: int, head_dim: int, rng: np.random.Generator) -> None:
    def weight(name: str) -> Array:
        return tensors[f"{prefix}{name}.weight"]

    def factors(n: int) -> Array:
        return np.exp(SPREAD * rng.standard_normal(n)).astype(np.float32)

    for norm, linears in (("attn_norm", ("attn_q", "attn_k", "attn_v")), ("ffn_norm", ("ffn_gate", "ffn_up"))):
        s = factors(len(weight(norm)))
        weight(norm)[:] /= s
        for linear in linears:
            weight(linear)[:] *= s
    s = factors(len(weight("attn_v")))
    weight("attn_v")[:] /= s[:, None]
    # The heads of a group share v, so its channels come `group` times at the input of the attention's output.
    weight("attn_output")[:] *= np.repeat(s.reshape(-1, 1, head_dim), group, axis=1).reshape(-1)
    s = factors(len(weight("ffn_up")))
    weight("ffn_up")[:] /= s[:, None]
    weight("ffn_down")[:] *= s


def main() -> None:
    kinds = {"dithered": write_dithered, "dequantized": write_dequantized}
    if len(sys.argv) != 4 or sys.argv[1] not in kinds:
        raise SystemExit(__doc__)
    kinds[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))


if __name__ == "__main__":
    main()
