"""Writes weight matrices into a graph, and the nodes that look up their rows or multiply by them.

What is fastest among the exact ways, measured with onnxruntime 1.32 on AVX2 (matrix 576 x 1536, two threads, one row of input):

    4 bits, int8 activations    30 us    8 bits, int8 activations    32 us    float32    44 us
    the sums and products of offsets that a format with minimums needs besides    5 us (a floating zero point takes 900 us)
    4 bits, float32 activations    90 to 120 us
    8 bits, float32 activations    800 to 1000 us, as the whole matrix is dequantized in every call

So a matrix is held in 4 or 8 bits (quant/pack_nbits.py), but as float32 where its format has no such form, and where activations are
float32 and its codes have 8 bits. A float16 constant would save disk, but ONNX Runtime converts large ones in every call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.onnx.export import StoredFormat
from edgelm.backends.onnx.graph import FLOAT, UINT8, GraphWriter, row_chunks
from edgelm.backends.weights import Linear, tensor_rows
from edgelm.quant.blocks import F32, FORMATS, BlockFormat
from edgelm.quant.model_file import Tensor
from edgelm.quant.pack_nbits import NBitsLayout, nbits_layout, pack_nbits

FLOAT32 = "float32"
"""What a StoredFormat says of matrices without codes."""
_ACCURACY_LEVEL = {"int8": 4, "f32": 1}


@dataclass(frozen=True)
class _Held:
    """A matrix [n_rows, n_columns] in the graph; layout None is float32."""

    name: str
    n_rows: int
    n_columns: int
    layout: NBitsLayout | None


class MatrixWriter:
    """The matrices of one graph.

    Args:
        graph: the graph to write into.
        precision: of the activations in products: "int8" or "f32".
        requantize: name of the format that wider ones become, or None.
    """

    def __init__(self, graph: GraphWriter, precision: str, requantize: str | None = None) -> None:
        self._graph = graph
        self._precision = precision
        self._requantize = None if requantize is None else FORMATS[requantize.upper()]
        self._sums: dict[tuple[str, int], str] = {}
        self._held: dict[str, _Held] = {}
        self._report: dict[tuple[str, str, bool], list[int]] = {}

    @property
    def report(self) -> tuple[StoredFormat, ...]:
        """What was written so far, one entry for each format and what it became."""
        return tuple(StoredFormat(*key, *counts) for key, counts in self._report.items())

    # -- nodes ---------------------------------------------------------------------------------------------------------------------

    def lookup(self, weight: Tensor, rows: str) -> str:
        """Rows of the matrix, float32 [..., n_columns], for an int64 value [...] of row numbers."""
        held, graph = self._hold([weight]), self._graph
        if held.layout is None:
            return graph.op("Gather", held.name, rows, axis=0)
        layout = held.layout
        codes = f"{held.name}.codes"
        flat = f"{held.name}.rows"
        if not graph.has_weight(flat):
            graph.view(flat, codes, UINT8, (held.n_rows, held.n_columns * layout.bits // 8))
        attributes: dict[str, Any] = {"bits": layout.bits, "block_size": layout.block_size, "gather_axis": 0, "quantize_axis": 1}
        values = graph.op("GatherBlockQuantized", flat, rows, f"{held.name}.scales", **attributes)
        if not layout.has_offsets:
            return values
        blocks = graph.op("Reshape", values, graph.constant(np.array([0, 0, -1, layout.block_size])))
        offsets = graph.op("Unsqueeze", graph.op("Gather", f"{held.name}.offsets", rows, axis=0), graph.constant(np.array([-1])))
        return graph.op("Reshape", graph.op("Add", blocks, offsets), graph.constant(np.array([0, 0, held.n_columns])))

    def can_join(self, linears: Sequence[Linear]) -> bool:
        """Whether several linear layers of one input can be a single product, their outputs one after the other."""
        kinds = {(self._layout(layer.weight), layer.bias is None) for layer in linears}
        return len(kinds) == 1

    def linear(self, x: str, *linears: Linear, name: str | None = None) -> str:
        """x W^T + b for float32 x [..., n_in]: float32 [..., n_out], n_out of several layers one after the other."""
        graph, held = self._graph, self._hold([layer.weight for layer in linears])
        biases = [layer.bias.dequantize() for layer in linears if layer.bias is not None]
        bias = graph.constant(np.concatenate(biases)) if biases else ""
        if held.layout is not None:
            return self._quantized(x, held, held.layout, bias, name)
        y = graph.op("FusedMatMul", x, held.name, transB=1, name=None if bias else name)
        return graph.op("Add", y, bias, name=name) if bias else y

    def _quantized(self, x: str, held: _Held, layout: NBitsLayout, bias: str, name: str | None) -> str:
        graph = self._graph
        inputs = [x, f"{held.name}.codes", f"{held.name}.scales", *(("", "", bias) if bias else ())]
        attributes: dict[str, Any] = {
            "K": held.n_columns,
            "N": held.n_rows,
            "bits": layout.bits,
            "block_size": layout.block_size,
            "accuracy_level": _ACCURACY_LEVEL[self._precision],
        }
        if not layout.has_offsets:
            return graph.op("MatMulNBits", *inputs, name=name, **attributes)
        y = graph.op("MatMulNBits", *inputs, **attributes)
        offsets = graph.op("FusedMatMul", self._block_sums(x, layout.block_size), f"{held.name}.offsets", transB=1)
        return graph.op("Add", y, offsets, name=name)

    def _block_sums(self, x: str, block_size: int) -> str:
        """Sums of each block of channels, float32 [..., n_in / block_size]; once for all products of one input."""
        key = (x, block_size)
        if key not in self._sums:
            blocks = self._graph.op("Reshape", x, self._graph.constant(np.array([0, 0, -1, block_size])))
            self._sums[key] = self._graph.op("ReduceSum", blocks, self._graph.constant(np.array([-1])), keepdims=0)
        return self._sums[key]

    # -- weights -------------------------------------------------------------------------------------------------------------------

    def _target(self, weight: Tensor) -> BlockFormat:
        """The format in which the matrix is held: its own, or the one asked for where its own is wider."""
        wanted = self._requantize
        if wanted is None or weight.shape[-1] % wanted.n_elements:
            return weight.format
        wider = weight.format.n_bytes * wanted.n_elements > wanted.n_bytes * weight.format.n_elements
        return wanted if wider else weight.format

    def _layout(self, weight: Tensor) -> NBitsLayout | None:
        layout = nbits_layout(self._target(weight))
        return None if layout is not None and layout.bits == 8 and self._precision == "f32" else layout

    def _hold(self, weights: Sequence[Tensor]) -> _Held:
        """Write matrices of the same layout as one, their rows one after the other, unless that was done before."""
        name = "+".join(weight.name for weight in weights)
        if name not in self._held:
            layout = self._layout(weights[0])
            held = _Held(name, sum(weight.shape[0] for weight in weights), weights[0].shape[1], layout)
            before = self._graph.data_bytes
            if layout is None:
                self._graph.weight(name, FLOAT, (held.n_rows, held.n_columns), self._float_rows(weights))
            else:
                self._write_nbits(held, layout, weights)
            self._held[name] = held
            self._count(weights, layout, self._graph.data_bytes - before)
        return self._held[name]

    def _float_rows(self, weights: Sequence[Tensor]) -> Iterator[NDArray[np.float32]]:
        for target, data, n_columns in self._rows(weights):
            yield target.dequantize(data).reshape(-1, n_columns)

    def _write_nbits(self, held: _Held, layout: NBitsLayout, weights: Sequence[Tensor]) -> None:
        """Codes go to the file as they come; scales and offsets, which are far smaller, after them."""
        code_shape, scale_shape = layout.shapes(held.n_rows, held.n_columns)
        scales = np.empty(scale_shape, np.float32)
        offsets = np.empty(scale_shape, np.float32) if layout.has_offsets else None

        def codes() -> Iterator[NDArray[np.uint8]]:
            done = 0
            for target, data, n_columns in self._rows(weights):
                rows = pack_nbits(target, data, n_columns)
                place = slice(done, done + len(rows.scales))
                scales[place], done = rows.scales, place.stop
                if offsets is not None and rows.offsets is not None:
                    offsets[place] = rows.offsets
                yield rows.codes

        self._graph.weight(f"{held.name}.codes", UINT8, code_shape, codes())
        self._graph.weight(f"{held.name}.scales", FLOAT, scale_shape, [scales])
        if offsets is not None:
            self._graph.weight(f"{held.name}.offsets", FLOAT, scale_shape, [offsets])

    def _rows(self, weights: Sequence[Tensor]) -> Iterator[tuple[BlockFormat, NDArray[np.uint8], int]]:
        """The rows of all matrices, some at a time: format, its bytes, and columns."""
        for weight in weights:
            target, (n_rows, n_columns) = self._target(weight), weight.shape
            for rows in row_chunks(n_rows, n_columns * F32.n_bytes):
                part = tensor_rows(weight, rows.start, rows.stop)
                yield target, part.data if target is weight.format else target.quantize(part.dequantize()), n_columns

    def _count(self, weights: Sequence[Tensor], layout: NBitsLayout | None, n_bytes: int) -> None:
        total = sum(weight.shape[0] for weight in weights)
        stored = FLOAT32 if layout is None else f"{layout.bits}-bit codes" + (" and offsets" if layout.has_offsets else "")
        for weight in weights:
            target = self._target(weight)
            requantized = "" if target is weight.format else f"{target.name} in "
            counts = self._report.setdefault((weight.format.name, requantized + stored, target is weight.format), [0, 0, 0])
            counts[0] += 1
            counts[1] += len(weight.data)
            counts[2] += n_bytes * weight.shape[0] // total
