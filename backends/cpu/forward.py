"""The forward pass as a tape: the operations of every layer in order, written once when a model is loaded.

    x = embed(tokens)
    for each layer:
        x += attention(norm(x))
        x += down(activation(gate(norm(x))) * up(norm(x)))
    logits = output(norm(x))

Each sum is carried out by the norm that follows it. An operation is a kernel and its arguments; threads meet only where one needs
what another has computed (records.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.config import ModelConfig
from edgelm.backends.cpu.packed_weights import Layer, Matrix, PackedWeights
from edgelm.backends.cpu.records import (
    ALWAYS,
    ATTEND,
    EMBED,
    GATE,
    IF_MANY,
    JOB,
    MATMUL,
    MAX_SPLITS,
    MERGE,
    NEVER,
    NORM,
    OP,
    QUANTIZE,
    ROTATE,
    SLOTS,
    TILE_ROWS,
    float_slot,
)
from edgelm.quant.pack_rows import FLOATS, padded_rows

_PADDING = 4  # rows that a tile of tokens may overhang


class Buffer:
    """Float rows that operations read and write: address, and bytes from one row to the next."""

    def __init__(self, n_rows: int, n_columns: int) -> None:
        self._memory = np.zeros((n_rows + _PADDING, padded_rows(n_columns)), np.float32)
        self.address: int = self._memory.ctypes.data
        self.stride: int = self._memory.strides[0]

    def row(self, index: int, n_columns: int, offset: int = 0) -> NDArray[np.float32]:
        """float32 [n_columns], `offset` columns into a row, as a view."""
        return self._memory[index, offset : offset + n_columns]


def activation_floats(n_columns: int) -> int:
    """Columns of a Buffer before the float32 values of an act row (layout in matmul.py)."""
    return -(-n_columns // 32) * 11


def activation_columns(n_columns: int) -> int:
    """Columns of a Buffer whose rows are act rows of n_columns channels."""
    return activation_floats(n_columns) + padded_rows(n_columns)


@dataclass(frozen=True)
class Tape:
    """The operations of a model.

    Attributes:
        operations: int64 [n, SLOTS].
        n_layers_end: operations up to the end of the last layer: enough for tokens without outputs.
        n_hidden_end: operations up to the final norm.
        buffers: what the operations write to.
        final: act rows that hold the final-norm hidden states.
    """

    operations: NDArray[np.int64]
    n_layers_end: int
    n_hidden_end: int
    buffers: tuple[Any, ...]
    final: Buffer


class ForwardPass:
    """Writes the tape of one model.

    Args:
        address: gives the address of a kernel by name.
        tables: address of the rotary table of each layer, float32 [n_ctx, 2, n_dims / 2], or 0.
        n_batch: tokens that one run may have. n_ctx: positions of one sequence.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: PackedWeights,
        tables: tuple[int, ...],
        precision: str,
        n_batch: int,
        n_ctx: int,
        n_threads: int,
        address: Any,
    ) -> None:
        c = self._config = config
        self._weights, self._tables, self._precision, self._address = weights, tables, precision, address
        self._kv_type = kv_type(precision)
        self._operations: list[list[int]] = []
        rows = max(n_batch, n_threads)
        wide = max(c.n_embd, c.n_ff, c.n_heads * c.head_dim)
        self._x = Buffer(rows, c.n_embd)
        self._y = Buffer(rows, c.n_embd)
        self._delta = Buffer(rows, c.n_embd)
        self._act = Buffer(rows, activation_columns(wide))
        self._q = Buffer(rows, c.n_heads * c.head_dim)
        self._k, self._v = (Buffer(rows, c.n_kv_heads * c.head_dim) for _ in range(2))
        parts = max(rows, MAX_SPLITS)
        self._mixed = Buffer(parts, c.n_heads * c.head_dim)
        self._stats = Buffer(parts, 2 * c.n_heads)
        self._gate, self._up = (Buffer(rows, c.n_ff) for _ in range(2))
        tile_rows = max(TILE_ROWS, c.n_heads // c.n_kv_heads)
        self._scores = Buffer(n_threads, tile_rows * (n_ctx + 32))

    def write(self) -> Tape:
        """The tape; its operations run in order."""
        c, w = self._config, self._weights
        self._embed(w.embedding)
        post_norm, delta = 0, 0
        for index, layer in enumerate(w.layers):
            self._norm(layer.attn_norm, delta, post_norm, (layer.q, layer.k, layer.v))
            self._attention(index, layer)
            delta = self._delta.address
            self._norm(layer.ffn_norm, delta, layer.post_attn_norm, (layer.gate, layer.up))
            self._feed_forward(layer)
            post_norm = layer.post_ffn_norm
        n_layers_end = len(self._operations)
        self._norm(w.output_norm, delta, post_norm, (w.output,), final=True)
        n_hidden_end = len(self._operations)
        self._matmul(w.output, None, NEVER, rows=JOB.n_outputs)
        operations = np.array(self._operations, np.int64)
        buffers = (self._x, self._y, self._delta, self._act, self._q, self._k, self._v, self._mixed, self._stats, self._gate, self._up)
        return Tape(operations, n_layers_end, n_hidden_end, (*buffers, self._scores, w, c), self._act)

    def _attention(self, index: int, layer: Layer) -> None:
        """delta = o(attention(q(act), k(act), v(act)))."""
        c, q, k, v = self._config, self._q, self._k, self._v
        self._matmul(layer.q, q, NEVER)
        self._matmul(layer.k, k, NEVER)
        self._matmul(layer.v, v, ALWAYS)
        heads = {"n_heads": c.n_heads, "head_dim": c.head_dim}
        table = self._tables[index]
        self._add(
            f"rotate:{self._kv_type}", ROTATE, ALWAYS, q=q.address, q_stride=q.stride, k=k.address, k_stride=k.stride, v=v.address,
            v_stride=v.stride, n_kv_heads=c.n_kv_heads, table=table, n_dims=c.rope.n_dims if table else 0, q_norm=layer.q_norm,
            k_norm=layer.k_norm, eps=float_slot(c.norm_eps), q_scale=float_slot(c.attention_scale), layer=index, **heads,
        )  # fmt: skip
        mixed, stats, scores = self._mixed, self._stats, self._scores
        self._add(
            f"attend:{self._kv_type}", ATTEND, ALWAYS, q=q.address, q_stride=q.stride, out=mixed.address, stats=stats.address,
            n_kv_heads=c.n_kv_heads, layer=index, window=c.sliding_window if c.is_local(index) else 0,
            softcap=float_slot(c.attention_softcap), scratch=scores.address, scratch_stride=scores.stride, **heads,
        )  # fmt: skip
        self._add(
            "merge", MERGE, IF_MANY, out=mixed.address, stats=stats.address, act=self._act.address, act_stride=self._act.stride,
            int8=self._is_int8(layer.o), **heads,
        )  # fmt: skip
        self._matmul(layer.o, self._delta, ALWAYS)

    def _feed_forward(self, layer: Layer) -> None:
        """delta = down(activation(gate(act)) * up(act))."""
        gate, up = self._gate, self._up
        self._matmul(layer.gate, gate, NEVER)
        self._matmul(layer.up, up, NEVER)
        self._add(
            f"gate:{self._config.row.activation}", GATE, ALWAYS,
            gate=gate.address, up=up.address, stride=gate.stride, n_runs=layer.gate.n_runs,
        )  # fmt: skip
        self._add(
            "quantize", QUANTIZE, IF_MANY, x=gate.address, x_stride=gate.stride, n=layer.down.n_in, act=self._act.address,
            act_stride=self._act.stride, int8=self._is_int8(layer.down),
        )  # fmt: skip
        self._matmul(layer.down, self._delta, ALWAYS)

    def _embed(self, table: Matrix) -> None:
        kernel = f"{'embed_float' if table.format in FLOATS else 'embed'}:{table.format}"
        self._add(
            kernel, EMBED, IF_MANY, table=table.address, n_columns=table.n_in, x=self._x.address, x_stride=self._x.stride,
            scale=float_slot(self._config.embedding_scale),
        )  # fmt: skip

    def _norm(self, norm: int, delta: int, post_norm: int, consumers: tuple[Matrix, ...], final: bool = False) -> None:
        """x += post_norm(delta) and act = norm(x). The final one keeps only the rows that give outputs."""
        c, x, act = self._config, self._x, self._act
        self._add(
            "norm", NORM, IF_MANY, rows=JOB.n_outputs if final else JOB.n_tokens, x=x.address, x_stride=x.stride,
            x_out=self._y.address if final else x.address, delta=delta, delta_stride=self._delta.stride, post_norm=post_norm,
            residual_scale=float_slot(c.residual_scale), norm=norm, n=c.n_embd, eps=float_slot(c.norm_eps), act=act.address,
            act_stride=act.stride, int8=self._is_int8(*consumers), gather=final,
        )  # fmt: skip

    def _matmul(self, matrix: Matrix, out: Buffer | None, meet: int, rows: int = JOB.n_tokens) -> None:
        """out = W act + b; the job's logits where out is None."""
        kind = "float" if matrix.format in FLOATS else self._precision
        self._add(
            f"matmul_{kind}:{matrix.format}", MATMUL, meet, rows=rows, weights=matrix.address, n_runs=matrix.n_runs, n_columns=matrix.n_in,
            act=self._act.address, act_stride=self._act.stride, out=out.address if out else 0, out_stride=out.stride if out else 0,
            bias=matrix.bias,
        )  # fmt: skip

    def _is_int8(self, *consumers: Matrix) -> bool:
        return self._precision == "int8" and any(matrix.format not in FLOATS for matrix in consumers)

    def _add(self, kernel: str, offsets: Any, meet: int, rows: int = JOB.n_tokens, **fields: int) -> None:
        slots = [0] * SLOTS
        slots[OP.kernel // 8], slots[OP.meet // 8], slots[OP.rows // 8] = self._address(kernel), meet, rows
        if set(fields) != set(offsets._fields):
            raise KeyError(f"{kernel} takes {sorted(offsets._fields)}, not {sorted(fields)}")
        for name, value in fields.items():
            slots[getattr(offsets, name) // 8] = int(value)
        self._operations.append(slots)


def kv_type(precision: str) -> str:
    """Type of keys and values in the cache: half precision where activations are rounded anyway."""
    return "f32" if precision == "f32" else "f16"


def kernel_names(config: ModelConfig, weights: PackedWeights, precision: str) -> set[str]:
    """Kernels that the model's tape will name, so that they can be compiled together beforehand."""
    names: set[str] = set()

    def note(name: str) -> int:
        names.add(name)
        return 0

    ForwardPass(config, weights, (0,) * config.n_layers, precision, 1, 1, 1, note).write()
    return names
