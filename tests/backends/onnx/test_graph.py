"""Graphs written node by node, and run."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgelm.backends.onnx.graph import FLOAT, UINT8, GraphWriter, row_chunks
from edgelm.errors import ModelFileError


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_a_graph_computes_what_its_nodes_say(tmp_path: Path) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    with GraphWriter(tmp_path, "small") as graph:
        x = graph.input("x", FLOAT, ("n", 4))
        rows = graph.default_input("rows", ("n_rows",), np.array([-1], np.int64))
        graph.weight("matrix", FLOAT, (3, 4), (matrix[part] for part in row_chunks(3, 2 << 20)))
        y = graph.op("FusedMatMul", graph.op("Gather", x, rows, axis=0), "matrix", transB=1)
        graph.op("Add", y, graph.constant(np.float32(1)[()] * np.ones(1, np.float32)), name="y")
        graph.output("y", FLOAT, ("n_rows", 3))
        path = graph.save()
    x_values = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.float32)
    run = session(path)
    np.testing.assert_array_equal(run.run(None, {"x": x_values})[0], matrix[:, 1][None] + 1)
    np.testing.assert_array_equal(run.run(None, {"x": x_values, "rows": np.array([0, 1])})[0], matrix[:, :2].T + 1)


def test_weights_are_aligned_and_views_share_their_bytes(tmp_path: Path) -> None:
    with GraphWriter(tmp_path, "small") as graph:
        graph.weight("odd", UINT8, (3,), [np.array([1, 2, 3], np.uint8)])
        graph.weight("even", UINT8, (2, 4), [np.arange(8, dtype=np.uint8)])
        graph.view("flat", "even", UINT8, (8,))
        places = {tensor.name: {p.key: p.value for p in tensor.external_data} for tensor in graph.model().graph.initializer}
        assert graph.data_bytes == 64 + 8
    assert places["flat"] == places["even"] == {"location": "small.onnx.data", "offset": "64", "length": "8"}
    assert (tmp_path / "small.onnx.data").read_bytes()[64:] == bytes(range(8))


def test_equal_small_constants_are_one_and_large_ones_go_to_the_file(tmp_path: Path) -> None:
    with GraphWriter(tmp_path, "small") as graph:
        assert graph.constant(np.array([1, 2])) == graph.constant(np.array([1, 2]))
        assert graph.constant(np.array([1, 2])) != graph.constant(np.array([1, 2], np.int32))
        assert graph.data_bytes == 0
        graph.constant(np.zeros(1000, np.float32))
        assert graph.data_bytes == 4000


def test_a_weight_of_the_wrong_size_is_an_error(tmp_path: Path) -> None:
    with GraphWriter(tmp_path, "small") as graph, pytest.raises(ModelFileError, match="given 8 bytes, but \\(3,\\) takes 12"):
        graph.weight("w", FLOAT, (3,), [np.zeros(2, np.float32)])


def test_chunks_cover_all_rows() -> None:
    chunks = list(row_chunks(10, 1 << 20))
    assert [chunk.start for chunk in chunks] == [0, 4, 8]
    assert chunks[-1].stop == 10
    assert list(row_chunks(2, 1 << 30)) == [slice(0, 1), slice(1, 2)]
