"""Writes an ONNX graph node by node, its weights into one external data file as they come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edgelm.errors import ModelFileError
from edgelm.version import __version__

OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
_ALIGNMENT = 64  # bytes; what vector instructions ask for
_INLINE_BYTES = 1024  # constants up to this size stay in the graph, where shape inference sees them
_CONTRIB = frozenset(
    {
        "FastGelu",
        "FusedMatMul",
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulNBits",
        "QuickGelu",
        "RotaryEmbedding",
        "SkipSimplifiedLayerNormalization",
    }
)

FLOAT, FLOAT16, BFLOAT16, UINT8, INT32, INT64 = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
)
_ITEM_BYTES: Mapping[int, int] = {FLOAT: 4, FLOAT16: 2, BFLOAT16: 2, UINT8: 1, INT32: 4, INT64: 8}
Dims = Sequence[int | str]


@dataclass(frozen=True)
class Stored:
    """Where an initializer's bytes lie in the data file."""

    offset: int
    n_bytes: int


class GraphWriter:
    """One graph and its data file, both in `folder`: `<name>.onnx` and `<name>.onnx.data`. Use it in a `with` statement.

    Nodes run in the order in which they are added. Values are known by name; a node's outputs get names of their own unless given.

    Args:
        folder: it must exist.
        name: of the graph and of its files.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.onnx"
        self._data_name = f"{name}.onnx.data"
        self._name = name
        self._nodes: list[NodeProto] = []
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._stored: dict[str, Stored] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0
        self._data: IO[bytes] = (folder / self._data_name).open("wb")

    def __enter__(self) -> GraphWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._data.close()

    # -- ends of the graph ---------------------------------------------------------------------------------------------------------

    def input(self, name: str, element_type: int, dims: Dims) -> str:
        """A value that the caller gives; text dimensions are any size. Returns the name."""
        self._inputs.append(helper.make_tensor_value_info(name, element_type, dims))
        return name

    def default_input(self, name: str, dims: Dims, default: NDArray[Any]) -> str:
        """A value that the caller may give, and that is `default` otherwise. Returns the name."""
        self._initializers[name] = numpy_helper.from_array(default, name)
        return self.input(name, helper.np_dtype_to_tensor_dtype(default.dtype), dims)

    def output(self, name: str, element_type: int, dims: Dims) -> None:
        """Declare a node's output as one of the graph's."""
        self._outputs.append(helper.make_tensor_value_info(name, element_type, dims))

    # -- constants -----------------------------------------------------------------------------------------------------------------

    def constant(self, values: NDArray[Any]) -> str:
        """A constant; equal small ones are stored once. Returns its name."""
        values = np.ascontiguousarray(values) if values.ndim else values
        if values.nbytes > _INLINE_BYTES:
            name = self.new_name("constant")
            self.weight(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape, [values])
            return name
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._constants:
            self._constants[key] = name = self.new_name("constant")
            self._initializers[name] = numpy_helper.from_array(values, name)
        return self._constants[key]

    def weight(self, name: str, element_type: int, dims: Sequence[int], chunks: Iterable[NDArray[Any]]) -> str:
        """A constant in the data file, its bytes in C order and in chunks, each written before the next is asked for. Returns the name.

        Raises:
            ModelFileError: the chunks are not as many bytes as the dimensions take.
        """
        start = self._data.tell()
        start += -start % _ALIGNMENT
        self._data.seek(start)
        n_bytes = sum(self._data.write(np.ascontiguousarray(chunk).data.cast("B")) for chunk in chunks if chunk.size)
        self._stored[name] = Stored(start, n_bytes)
        self._refer(name, element_type, dims, self._stored[name])
        return name

    def view(self, name: str, of: str, element_type: int, dims: Sequence[int]) -> str:
        """A constant of the same bytes as another weight, in other dimensions. Returns the name."""
        self._refer(name, element_type, dims, self._stored[of])
        return name

    def has_weight(self, name: str) -> bool:
        """Whether a weight of this name was stored."""
        return name in self._stored

    def _refer(self, name: str, element_type: int, dims: Sequence[int], stored: Stored) -> None:
        wanted = math.prod(dims) * _ITEM_BYTES[element_type]
        if stored.n_bytes != wanted:
            raise ModelFileError(f"{self._path}: constant {name} was given {stored.n_bytes} bytes, but {tuple(dims)} takes {wanted}")
        tensor = TensorProto(name=name, data_type=element_type, dims=dims, data_location=TensorProto.EXTERNAL)
        place = {"location": self._data_name, "offset": stored.offset, "length": stored.n_bytes}
        tensor.external_data.extend(StringStringEntryProto(key=key, value=str(value)) for key, value in place.items())
        self._initializers[name] = tensor

    # -- nodes ---------------------------------------------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output, and return that output's name: `name`, or a new one. An empty input name is an input left out."""
        output = name or self.new_name(kind)
        self.node(kind, inputs, [output], **attributes)
        return output

    def ops(self, kind: str, *inputs: str, outputs: str, **attributes: Any) -> list[str]:
        """Add a node with several outputs and return their names; `outputs` has "1" for one that is wanted, "0" for one left out ("")."""
        names = [self.new_name(kind) if wanted == "1" else "" for wanted in outputs]
        self.node(kind, inputs, names, **attributes)
        return names

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add a node; it is named after its first output."""
        domain = MICROSOFT if kind in _CONTRIB else ""
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=f"{next(iter(outputs))}:{kind}", domain=domain, **attributes))

    def new_name(self, stem: str) -> str:
        """A name that no other value has."""
        self._count += 1
        return f"{stem}_{self._count}"

    # -- the file ------------------------------------------------------------------------------------------------------------------

    @property
    def data_bytes(self) -> int:
        """Bytes of the data file so far."""
        return self._data.tell()

    def model(self) -> ModelProto:
        """The model, its weights referring to the data file."""
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, list(self._initializers.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        model.producer_name, model.producer_version = "edgelm", __version__
        return model

    def save(self) -> Path:
        """Write the graph, and close the data file. Returns the graph's path."""
        self._data.close()
        self._path.write_bytes(self.model().SerializeToString())
        return self._path


def row_chunks(n_rows: int, row_bytes: int) -> Iterator[slice]:
    """Slices that cover n_rows, each of about 4 MB at row_bytes a row: what is worked on at once when a large matrix is written."""
    step = max(1, (4 << 20) // row_bytes)
    for start in range(0, n_rows, step):
        yield slice(start, min(n_rows, start + step))
