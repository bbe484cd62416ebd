"""Random-weight GGUF files of published shapes, for speed alone: how long a model takes does not depend on what its weights are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.blocks import F32, FORMATS, Q6_K, Q8_0, BlockFormat
from edgelm.quant.gguf_writer import TensorSource, entry, write_gguf

_POOL_VALUES = 1 << 20


@dataclass(frozen=True)
class Shape:
    """Sizes of a published model.

    Attributes:
        tied: the output layer is the embedding.
        qkv_bias, qk_norm: biases of q, k, v; norms of each q and k head.
    """

    architecture: str
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    n_vocab: int
    head_dim: int
    rope_base: float = 10000.0
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "smollm2-360m": Shape("llama", 32, 960, 2560, 15, 5, 49152, 64, 1e5, tied=True),
        "smollm2-1.7b": Shape("llama", 24, 2048, 8192, 32, 32, 49152, 64, 1.3e5, tied=True),
        "tinyllama-1.1b": Shape("llama", 22, 2048, 5632, 32, 4, 32000, 64),
        "llama-3.2-1b": Shape("llama", 16, 2048, 8192, 32, 8, 128256, 64, 5e5, tied=True),
        "llama-3.2-3b": Shape("llama", 28, 3072, 8192, 24, 8, 128256, 128, 5e5, tied=True),
        "llama-2-7b": Shape("llama", 32, 4096, 11008, 32, 32, 32000, 128),
        "llama-3.1-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128256, 128, 5e5),
        "mistral-7b": Shape("llama", 32, 4096, 14336, 32, 8, 32000, 128),
        "qwen2.5-0.5b": Shape("qwen2", 24, 896, 4864, 14, 2, 151936, 64, 1e6, tied=True, qkv_bias=True),
        "qwen2.5-1.5b": Shape("qwen2", 28, 1536, 8960, 12, 2, 151936, 128, 1e6, tied=True, qkv_bias=True),
        "qwen2.5-7b": Shape("qwen2", 28, 3584, 18944, 28, 4, 152064, 128, 1e6, qkv_bias=True),
        "qwen3-0.6b": Shape("qwen3", 28, 1024, 3072, 16, 8, 151936, 128, 1e6, tied=True, qk_norm=True),
    }
)


def write_shape(target: Path, name: str, format_name: str = "Q4_0", seed: int = 0) -> None:
    """Write a model of SHAPES[name] with Gaussian weights; memory stays at a few megabytes.

    All linear layers have the format; the output layer is Q6_K, as llama.cpp's quantizer has it, or Q8_0 where rows are not whole blocks.

    Raises:
        InvalidRequestError: no such shape or format, or its blocks do not divide the shape's rows.
        ModelFileError: the file cannot be written.
    """
    shape, block = SHAPES.get(name), FORMATS.get(format_name.upper())
    if shape is None:
        raise InvalidRequestError(f"no shape is called {name!r}; there are {', '.join(SHAPES)}")
    if block is None:
        raise InvalidRequestError(f"no format is called {format_name!r}; there are {', '.join(FORMATS)}")
    bad_rows = {n for n in (shape.n_embd, shape.n_ff, shape.n_heads * shape.head_dim) if n % block.n_elements}
    if bad_rows:
        raise InvalidRequestError(
            f"{block.name} stores blocks of {block.n_elements} values, which do not divide {name}'s rows of {min(bad_rows)}"
        )
    entries = _metadata(name, shape)
    write_gguf(target, b"".join(entries), len(entries), list(_tensors(shape, block, _Weights(seed))))


def _metadata(name: str, shape: Shape) -> list[bytes]:
    arch = shape.architecture
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["t h", "i n"]
    tokens = [*control, *_byte_symbols(), *(merge.replace(" ", "") for merge in merges)]
    kinds = np.full(shape.n_vocab, 1, np.int32)
    kinds[: len(control)] = 3  # control tokens, as llama.cpp numbers them
    tokens += [f"<{i}>" for i in range(shape.n_vocab - len(tokens))]
    return [
        entry("general.architecture", arch),
        entry("general.name", f"{name} shape, random weights"),
        entry(f"{arch}.block_count", shape.n_layers),
        entry(f"{arch}.context_length", 4096),
        entry(f"{arch}.embedding_length", shape.n_embd),
        entry(f"{arch}.feed_forward_length", shape.n_ff),
        entry(f"{arch}.attention.head_count", shape.n_heads),
        entry(f"{arch}.attention.head_count_kv", shape.n_kv_heads),
        entry(f"{arch}.attention.key_length", shape.head_dim),
        entry(f"{arch}.attention.value_length", shape.head_dim),
        entry(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5),
        entry(f"{arch}.rope.dimension_count", shape.head_dim),
        entry(f"{arch}.rope.freq_base", shape.rope_base),
        entry("tokenizer.ggml.model", "gpt2"),
        entry("tokenizer.ggml.pre", "gpt-2"),
        entry("tokenizer.ggml.tokens", tokens),
        entry("tokenizer.ggml.token_type", kinds),
        entry("tokenizer.ggml.merges", merges),
        entry("tokenizer.ggml.bos_token_id", 0),
        entry("tokenizer.ggml.eos_token_id", 2),
    ]


def _byte_symbols() -> list[str]:
    """The characters that stand for the 256 bytes in byte-level vocabularies: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


class _Weights:
    """Gaussian weights in any format: a pool of real blocks for each row length and format, repeated from random places."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._pools: dict[tuple[str, int], NDArray[np.uint8]] = {}

    def linear(self, name: str, n_out: int, n_in: int, block: BlockFormat) -> TensorSource:
        return TensorSource(f"{name}.weight", (n_out, n_in), block, self._chunks(n_out * n_in // block.n_elements, n_in, block))

    def vector(self, name: str, size: int, mean: float) -> TensorSource:
        values = (mean + 0.1 * self._rng.standard_normal(size)).astype(np.float32)
        return TensorSource(name, (size,), F32, lambda: [values.view(np.uint8)])

    def _chunks(self, n_blocks: int, n_in: int, block: BlockFormat) -> Callable[[], Iterator[NDArray[np.uint8]]]:
        def chunks() -> Iterator[NDArray[np.uint8]]:
            pool, left = self._pool(n_in, block), n_blocks
            while left:
                start = int(self._rng.integers(len(pool)))
                part = pool[start : start + left]
                left -= len(part)
                yield part

        return chunks

    def _pool(self, n_in: int, block: BlockFormat) -> NDArray[np.uint8]:
        """Blocks of weights with variance 1 / n_in, so that activations keep their size, [n, block.n_bytes]."""
        key = (block.name, n_in)
        if key not in self._pools:
            values = self._rng.standard_normal(_POOL_VALUES, dtype=np.float32) / np.float32(np.sqrt(n_in))
            self._pools[key] = block.quantize(values).reshape(-1, block.n_bytes)
        return self._pools[key]


def _tensors(shape: Shape, block: BlockFormat, weights: _Weights) -> Iterator[TensorSource]:
    embd, ff, head = shape.n_embd, shape.n_ff, shape.head_dim
    q, kv = shape.n_heads * head, shape.n_kv_heads * head
    output = Q8_0 if embd % Q6_K.n_elements else Q6_K
    yield weights.linear("token_embd", shape.n_vocab, embd, output if shape.tied else block)
    yield weights.vector("output_norm.weight", embd, 1.0)
    if not shape.tied:
        yield weights.linear("output", shape.n_vocab, embd, output)
    for layer in range(shape.n_layers):
        prefix = f"blk.{layer}."
        for name in ("attn_norm", "ffn_norm"):
            yield weights.vector(f"{prefix}{name}.weight", embd, 1.0)
        for name, n_out in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
            yield weights.linear(f"{prefix}{name}", n_out, embd, block)
            if shape.qkv_bias:
                yield weights.vector(f"{prefix}{name}.bias", n_out, 0.0)
            if shape.qk_norm and name != "attn_v":
                yield weights.vector(f"{prefix}{name}_norm.weight", head, 1.0)
        yield weights.linear(f"{prefix}attn_output", embd, q, block)
        for name in ("ffn_gate", "ffn_up"):
            yield weights.linear(f"{prefix}{name}", ff, embd, block)
        yield weights.linear(f"{prefix}ffn_down", embd, ff, block)
