"""A model's weights in the CPU engine's layout, in one run of memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.config import ModelConfig
from edgelm.backends.weights import Linear, ModelTensors
from edgelm.quant.model_file import ModelFile, Tensor
from edgelm.quant.pack_rows import pack, packed_bytes, padded_rows

_ALIGNMENT = 64
_PIECE_BYTES = 1 << 24  # of the file, packed before its pages are let go


@dataclass(frozen=True)
class Matrix:
    """A packed linear layer or embedding [n_out, n_in].

    Attributes:
        address: of the packed rows.
        bias: address of float32 [padded_rows(n_out)], or 0.
    """

    format: str
    n_out: int
    n_in: int
    address: int
    bias: int = 0

    @property
    def n_runs(self) -> int:
        """Runs of eight rows."""
        return padded_rows(self.n_out) // 8


@dataclass(frozen=True)
class Layer:
    """One transformer block: matrices, and addresses of float32 norm weights (0 where there is none)."""

    attn_norm: int
    q: Matrix
    k: Matrix
    v: Matrix
    q_norm: int
    k_norm: int
    o: Matrix
    post_attn_norm: int
    ffn_norm: int
    gate: Matrix
    up: Matrix
    down: Matrix
    post_ffn_norm: int


@dataclass(frozen=True)
class PackedWeights:
    """All weights of a model.

    Attributes:
        n_bytes: memory they take.
        bytes_per_token: of them, what decoding one token reads.
    """

    embedding: Matrix
    layers: tuple[Layer, ...]
    output_norm: int
    output: Matrix
    n_bytes: int
    bytes_per_token: int
    _memory: NDArray[np.uint8]


def weight_bytes(tensors: ModelTensors) -> int:
    """Memory that the packed weights will take, in bytes."""
    arena = _Arena(None)
    _pack_all(tensors, arena, ())
    return arena.used


def pack_weights(tensors: ModelTensors, config: ModelConfig, file: ModelFile) -> PackedWeights:
    """Rearrange every tensor; the file's pages are let go as they have been read."""
    arena = _Arena(weight_bytes(tensors), file.drop_pages)
    order = _half_order(config.head_dim, config.rope.n_dims) if config.row.rope == "adjacent" else ()
    return _pack_all(tensors, arena, order)


def _half_order(head_dim: int, n_dims: int) -> tuple[int, ...]:
    """Channels of a head reordered so that rotating pairs (2i, 2i+1) become pairs (i, i + n_dims / 2).

    Queries and keys are reordered alike, so their products stay the same, and one rotation kernel serves all models.
    """
    return (*range(0, n_dims, 2), *range(1, n_dims, 2), *range(n_dims, head_dim))


def _anonymous(size: int) -> mmap.mmap:
    """Memory of its own, in huge pages where the system has them: private, as Linux seldom gives them to what may be shared."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, size)
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_HUGEPAGE)
    return region


class _Arena:
    """Memory handed out piece by piece; without a size, it only counts. `let_go` is called after every piece that was read."""

    def __init__(self, size: int | None, let_go: Callable[[], None] = lambda: None) -> None:
        self._let_go = let_go
        self.used = 0
        self.memory = np.empty(0, np.uint8)
        self.base = 0
        if size is not None:
            self.memory = np.frombuffer(_anonymous(max(size, 1)), np.uint8)
            self.base = self.memory.ctypes.data

    def place(self, n_bytes: int, fill: Callable[[NDArray[np.uint8]], object]) -> int:
        """Address of n_bytes that `fill` has written."""
        start = self.used
        self.used += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
        if self.base:
            fill(self.memory[start : start + n_bytes])
        return self.base + start

    def floats(self, tensor: Tensor | None, rows: NDArray[np.intp] | None = None) -> int:
        """A vector as float32, padded to whole runs of eight; 0 for None."""
        if tensor is None:
            return 0
        n = padded_rows(tensor.shape[0])

        def fill(target: NDArray[np.uint8]) -> None:
            values = tensor.dequantize()
            target.view(np.float32)[: len(values)] = values if rows is None else values[rows]

        return self.place(4 * n, fill)

    def matrix(self, linear: Linear, rows: NDArray[np.intp] | None = None) -> Matrix:
        """A linear layer, its rows reordered if an order is given."""
        weight = linear.weight
        n_out, n_in = weight.shape

        def fill(target: NDArray[np.uint8]) -> None:
            data = weight.data.reshape(n_out, -1)
            piece = max(_PIECE_BYTES // data.shape[1] // 8, 1) * 8
            for start in range(0, n_out, piece):
                part = data[start : start + piece] if rows is None else data[rows[start : start + piece]]
                begin = packed_bytes(weight.format, start, n_in)
                end = begin + packed_bytes(weight.format, len(part), n_in)
                pack(weight.format, part.reshape(-1), len(part), n_in, target[begin:end])
                self._let_go()

        address = self.place(packed_bytes(weight.format, n_out, n_in), fill)
        return Matrix(weight.format.name, n_out, n_in, address, self.floats(linear.bias, rows))


def _pack_all(tensors: ModelTensors, arena: _Arena, order: tuple[int, ...]) -> PackedWeights:
    def by_head(linear: Linear) -> NDArray[np.intp] | None:
        if not order:
            return None
        rows: NDArray[np.intp] = np.arange(0, linear.n_out, len(order))[:, None] + np.array(order)
        return rows.reshape(-1)

    embedding = arena.matrix(Linear(tensors.embedding))
    embedding_end = arena.used
    layers = []
    for t in tensors.layers:
        layers.append(
            Layer(
                attn_norm=arena.floats(t.attn_norm),
                q=arena.matrix(t.q, by_head(t.q)),
                k=arena.matrix(t.k, by_head(t.k)),
                v=arena.matrix(t.v),
                q_norm=arena.floats(t.q_norm, np.array(order) if order else None),
                k_norm=arena.floats(t.k_norm, np.array(order) if order else None),
                o=arena.matrix(t.o),
                post_attn_norm=arena.floats(t.post_attn_norm),
                ffn_norm=arena.floats(t.ffn_norm),
                gate=arena.matrix(t.gate),
                up=arena.matrix(t.up),
                down=arena.matrix(t.down),
                post_ffn_norm=arena.floats(t.post_ffn_norm),
            )
        )
    output_norm = arena.floats(tensors.output_norm)
    tied = tensors.output.weight is tensors.embedding
    if tied:
        output = Matrix(embedding.format, embedding.n_out, embedding.n_in, embedding.address, arena.floats(tensors.output.bias))
    else:
        output = arena.matrix(tensors.output)
    per_token = arena.used - (0 if tied else embedding_end)
    return PackedWeights(embedding, tuple(layers), output_norm, output, arena.used, per_token, arena.memory)
