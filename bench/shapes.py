"""Random-weight GGUF files of published shapes, for speed alone: how long a model takes does not depend on what its weights are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgelm.bench.token_cost import EMBEDDING, OUTPUT, TensorSize
from edgelm.errors import EdgeLMError, InvalidRequestError, ModelFileError
from edgelm.quant.blocks import F32, FORMATS, Q6_K, Q8_0, BlockFormat
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.gguf_writer import MetadataValue, TensorSource, entry, write_gguf

_POOL_VALUES = 1 << 20


@dataclass(frozen=True)
class Shape:
    """Sizes of a published model.

    Attributes:
        tied: the output layer is the embedding.
        qkv_bias, qk_norm: biases of q, k, v; norms of each q and k head.
        fused: q, k, v are one matrix, and so are gate and up.
        post_norm: norms after attention and feed-forward, too.
        window: tokens that the layers with a sliding window look at; which ones, the architecture says. 0 for none.
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
    fused: bool = False
    post_norm: bool = False
    window: int = 0


def _gemma3(n_layers: int, n_embd: int, n_ff: int, n_heads: int, n_kv_heads: int, window: int) -> Shape:
    sizes = (n_layers, n_embd, n_ff, n_heads, n_kv_heads, 262144, 256, 1e6)
    return Shape("gemma3", *sizes, tied=True, qk_norm=True, post_norm=True, window=window)


# From each model's published config.json; tests compare the parameters they come to with the published counts.
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "smollm2-135m": Shape("llama", 30, 576, 1536, 9, 3, 49152, 64, 1e5, tied=True),
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
        "qwen2.5-3b": Shape("qwen2", 36, 2048, 11008, 16, 2, 151936, 128, 1e6, tied=True, qkv_bias=True),
        "qwen2.5-7b": Shape("qwen2", 28, 3584, 18944, 28, 4, 152064, 128, 1e6, qkv_bias=True),
        "qwen3-0.6b": Shape("qwen3", 28, 1024, 3072, 16, 8, 151936, 128, 1e6, tied=True, qk_norm=True),
        "qwen3-1.7b": Shape("qwen3", 28, 2048, 6144, 16, 8, 151936, 128, 1e6, tied=True, qk_norm=True),
        "qwen3-4b": Shape("qwen3", 36, 2560, 9728, 32, 8, 151936, 128, 1e6, tied=True, qk_norm=True),
        "qwen3-8b": Shape("qwen3", 36, 4096, 12288, 32, 8, 151936, 128, 1e6, qk_norm=True),
        "gemma-3-270m": _gemma3(18, 640, 2048, 4, 1, 512),
        "gemma-3-1b": _gemma3(26, 1152, 6912, 4, 1, 512),
        "gemma-3-4b": _gemma3(34, 2560, 10240, 8, 4, 1024),
        "phi-3-mini": Shape("phi3", 32, 3072, 8192, 32, 32, 32064, 96, fused=True),
    }
)


def find_shape(name: str) -> Shape:
    """The shape of a name.

    Raises:
        InvalidRequestError: there is none.
    """
    if name not in SHAPES:
        raise InvalidRequestError(f"no shape is called {name!r}; there are {', '.join(SHAPES)}")
    return SHAPES[name]


def find_format(format_name: str) -> BlockFormat:
    """The number format of a name in any case ("q4_0", "Q4_0").

    Raises:
        InvalidRequestError: there is none.
    """
    block = FORMATS.get(format_name.upper())
    if block is None:
        raise InvalidRequestError(f"no format is called {format_name!r}; there are {', '.join(FORMATS)}")
    return block


def tensor_sizes(name: str, format_name: str = "Q4_0") -> list[TensorSize]:
    """Every tensor of a model of SHAPES[name], in the order of the file.

    All linear layers have the format; the output layer is Q6_K, as llama.cpp's quantizer has it, or Q8_0 where rows are not whole blocks;
    with a float format it has that too.

    Raises:
        InvalidRequestError: no such shape or format, or its blocks do not divide the shape's rows.
    """
    shape, block = find_shape(name), find_format(format_name)
    bad_rows = {n for n in (shape.n_embd, shape.n_ff, shape.n_heads * shape.head_dim) if n % block.n_elements}
    if bad_rows:
        raise InvalidRequestError(
            f"{block.name} stores blocks of {block.n_elements} values, which do not divide {name}'s rows of {min(bad_rows)}; "
            f"choose a format with smaller blocks, such as Q4_0"
        )
    return list(_sizes(shape, block))


def shape_metadata(name: str) -> dict[str, MetadataValue]:
    """What a GGUF file of the shape says of itself, without its tokenizer."""
    shape = find_shape(name)
    arch = shape.architecture
    metadata: dict[str, MetadataValue] = {
        "general.architecture": arch,
        # without hyphens: llama.cpp alters special tokens of models that are called phi-3
        "general.name": f"{name.replace('-', ' ')} shape, random weights",
        f"{arch}.block_count": shape.n_layers,
        f"{arch}.context_length": 4096,
        f"{arch}.embedding_length": shape.n_embd,
        f"{arch}.feed_forward_length": shape.n_ff,
        f"{arch}.attention.head_count": shape.n_heads,
        f"{arch}.attention.head_count_kv": shape.n_kv_heads,
        f"{arch}.attention.key_length": shape.head_dim,
        f"{arch}.attention.value_length": shape.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.dimension_count": shape.head_dim,
        f"{arch}.rope.freq_base": shape.rope_base,
    }
    if shape.window:
        metadata[f"{arch}.attention.sliding_window"] = shape.window
    return metadata


def write_shape(target: Path, name: str, format_name: str = "Q4_0", seed: int = 0) -> None:
    """Write a model of tensor_sizes(name, format_name) with Gaussian weights; memory stays at a few megabytes.

    Raises:
        InvalidRequestError: no such shape or format, or its blocks do not divide the shape's rows.
        ModelFileError: the file cannot be written.
    """
    weights = _Weights(seed)
    tensors = [weights.source(size) for size in tensor_sizes(name, format_name)]
    entries = [entry(key, value) for key, value in (shape_metadata(name) | _tokenizer(find_shape(name).n_vocab)).items()]
    write_gguf(target, b"".join(entries), len(entries), tensors)


def cached_shape(name: str, format_name: str, folder: Path) -> Path:
    """The file of a shape in the folder, written there if it is not; it has its name only when it is whole.

    A file that is there is taken only if it is sound and has the shape's tensors.

    Raises:
        InvalidRequestError: no such shape or format, or its blocks do not divide the shape's rows.
        ModelFileError: the file cannot be written.
    """
    sizes = tensor_sizes(name, format_name)
    target = folder / f"{name}-{find_format(format_name).name}.gguf"
    if not target.is_file() or not _has_tensors(target, sizes):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelFileError(f"{folder} cannot be made ({error.strerror or error}); choose another place") from error
        write_shape(target, name, format_name)
    return target


def _has_tensors(path: Path, sizes: list[TensorSize]) -> bool:
    """Whether the file is sound and has exactly these tensors: one from an older edgelm may differ."""
    try:
        with GGUFFile(path) as file:
            return [(tensor.name, tensor.shape, tensor.format) for tensor in file.tensors.values()] == [
                (size.name, size.shape, size.format) for size in sizes
            ]
    except EdgeLMError:
        return False


def _tokenizer(n_vocab: int) -> dict[str, MetadataValue]:
    """A byte-level BPE of 3 control tokens, the 256 bytes, two merges, and names for the rest."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["t h", "i n"]
    tokens = [*control, *_byte_symbols(), *(merge.replace(" ", "") for merge in merges)]
    kinds = np.full(n_vocab, 1, np.int32)
    kinds[: len(control)] = 3  # control tokens, as llama.cpp numbers them
    tokens += [f"<{i}>" for i in range(n_vocab - len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
    }


def _byte_symbols() -> list[str]:
    """The characters that stand for the 256 bytes in byte-level vocabularies: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


class _Weights:
    """Gaussian weights in any format: a pool of real blocks for each row length and format, repeated from random places."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._pools: dict[tuple[str, int], NDArray[np.uint8]] = {}

    def source(self, size: TensorSize) -> TensorSource:
        """Weights for a matrix; ones with noise for a norm, and noise for a bias."""
        if len(size.shape) > 1:
            n_in = size.shape[-1]
            return TensorSource(
                size.name, size.shape, size.format, self._chunks(prod(size.shape) // size.format.n_elements, n_in, size.format)
            )
        mean = 0.0 if size.name.endswith(".bias") else 1.0
        values = (mean + 0.1 * self._rng.standard_normal(size.shape)).astype(np.float32)
        return TensorSource(size.name, size.shape, size.format, lambda: [values.view(np.uint8)])

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


def _sizes(shape: Shape, block: BlockFormat) -> Iterator[TensorSize]:
    embd, ff, head = shape.n_embd, shape.n_ff, shape.head_dim
    q, kv = shape.n_heads * head, shape.n_kv_heads * head
    output = Q8_0 if embd % Q6_K.n_elements else Q6_K
    if block.n_elements == 1:  # a float model, as a quantizer takes it
        output = block

    def norm(name: str, n: int) -> TensorSize:
        return TensorSize(f"{name}_norm.weight", (n,), F32)

    yield TensorSize(EMBEDDING, (shape.n_vocab, embd), output if shape.tied else block)
    yield norm("output", embd)
    if not shape.tied:
        yield TensorSize(OUTPUT, (shape.n_vocab, embd), output)
    qkv = {"attn_qkv": q + 2 * kv} if shape.fused else {"attn_q": q, "attn_k": kv, "attn_v": kv}
    gate_up = {"ffn_up": 2 * ff} if shape.fused else {"ffn_gate": ff, "ffn_up": ff}
    for layer in range(shape.n_layers):
        prefix = f"blk.{layer}."
        yield norm(f"{prefix}attn", embd)
        yield norm(f"{prefix}ffn", embd)
        if shape.post_norm:
            yield norm(f"{prefix}post_attention", embd)
            yield norm(f"{prefix}post_ffw", embd)
        for name, n_out in qkv.items():
            yield TensorSize(f"{prefix}{name}.weight", (n_out, embd), block)
            if shape.qkv_bias:
                yield TensorSize(f"{prefix}{name}.bias", (n_out,), F32)
        if shape.qk_norm:
            yield norm(f"{prefix}attn_q", head)
            yield norm(f"{prefix}attn_k", head)
        yield TensorSize(f"{prefix}attn_output.weight", (embd, q), block)
        for name, n_out in gate_up.items():
            yield TensorSize(f"{prefix}{name}.weight", (n_out, embd), block)
        yield TensorSize(f"{prefix}ffn_down.weight", (embd, ff), block)
