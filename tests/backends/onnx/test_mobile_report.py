"""The report tells what the checker found, and nothing of the checker's doings stays behind."""

from __future__ import annotations

import json

import onnx
from onnx import TensorProto, helper

from edgelm.backends.onnx.mobile_report import MobileReport, mobile_report


def chain(*kinds: str, dims: tuple[int | str, ...] = (1, 4)) -> onnx.ModelProto:
    """A graph of unary operators, one after the other."""
    nodes = [helper.make_node(kind, [f"x{i}"], [f"x{i + 1}"], name=f"{kind}.{i}") for i, kind in enumerate(kinds)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in ("x0", f"x{len(kinds)}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_graph_that_is_wholly_supported() -> None:
    report = mobile_report("chain", chain("Tanh", "Sigmoid", "Sqrt"))
    assert report == MobileReport("chain", 3, 3, (3,), (), 0, (), "YES")
    assert report.share == 1.0
    assert report.text == "chain: NNAPI would run 3 of 3 nodes (100.0%); partitions: 1 (3 nodes); worth trying: YES"


def test_operators_that_nnapi_does_not_have_are_named() -> None:
    report = mobile_report("chain", chain("Tanh", "Erf", "Tanh", "Erf", "Tanh", "Cosh"))
    assert (report.n_supported, report.partitions, report.suitability) == (3, (1, 1, 1), "NO")
    assert report.unsupported_operators == ("ai.onnx:Cosh", "ai.onnx:Erf")
    assert "operators that NNAPI does not have: ai.onnx:Cosh, ai.onnx:Erf" in report.text


def test_shapes_that_are_not_fixed_are_counted() -> None:
    report = mobile_report("chain", chain("Tanh", "Sigmoid", dims=("batch", 4)))
    assert (report.n_supported, report.n_dynamic, report.share) == (0, 2, 0.0)
    assert "nodes with inputs of no fixed shape: 2" in report.text


def test_conditions_that_the_checker_does_not_check_are_passed_on() -> None:
    nodes = [helper.make_node("Gather", ["table", "rows"], ["y"])]
    inputs = [
        helper.make_tensor_value_info("table", TensorProto.FLOAT, [3, 2]),
        helper.make_tensor_value_info("rows", TensorProto.INT32, [2]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    model = helper.make_model(helper.make_graph(nodes, "gather", inputs, [output]), opset_imports=[helper.make_opsetid("", 18)])
    report = mobile_report("gather", model)
    assert [caveat.split(":")[1] for caveat in report.caveats] == ["Gather"]
    assert "condition not checked: ai.onnx:Gather" in report.text


def test_the_report_is_json_and_nodes_hash_as_before() -> None:
    before = onnx.NodeProto.__hash__
    report = mobile_report("chain", chain("Tanh"))
    assert onnx.NodeProto.__hash__ is before
    assert json.loads(json.dumps(report.as_json()))["n_nodes"] == 1
