"""Constants in the data file are found by graphs in the same folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgelm.backends.onnx.data_file import DataFile


def test_graphs_read_what_was_stored(tmp_path: Path) -> None:
    values = {"a": np.arange(7, dtype=np.float32), "b": np.arange(12, dtype=np.float32).reshape(3, 4).T}
    with DataFile(tmp_path / "weights.data") as data:
        initializers = [data.store(name, TensorProto.FLOAT, array.shape, array) for name, array in values.items()]
        assert data.find("a") is initializers[0]
        assert data.find("c") is None
    graph = helper.make_graph([], "constants", [], [], initializers)
    (tmp_path / "graph.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    for tensor in onnx.load(tmp_path / "graph.onnx").graph.initializer:
        assert np.array_equal(numpy_helper.to_array(tensor), values[tensor.name])


def test_each_constant_begins_on_a_page(tmp_path: Path) -> None:
    with DataFile(tmp_path / "weights.data") as data:
        tensors = [data.store(name, TensorProto.UINT8, [5], np.zeros(5, np.uint8)) for name in "abc"]
    offsets = [int(entry.value) for tensor in tensors for entry in tensor.external_data if entry.key == "offset"]
    assert offsets == [0, 4096, 8192]
