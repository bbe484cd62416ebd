"""Which nodes of a graph NNAPI would run, by the usability checker that comes with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnx import ModelProto, NodeProto, shape_inference

from edgelm.errors import BackendUnavailableError


@dataclass(frozen=True)
class MobileReport:
    """What the checker says of one graph.

    Attributes:
        graph: its name.
        n_nodes, n_supported: all nodes, and those that NNAPI would run.
        partitions: nodes in each piece of the graph that NNAPI would run as a whole.
        unsupported_operators: operators that NNAPI's list does not have.
        n_dynamic: nodes refused because the shape of an input is not fixed.
        caveats: conditions of operators in the graph that the checker names and does not check.
        suitability: the checker's verdict: "YES", "MAYBE" or "NO".
    """

    graph: str
    n_nodes: int
    n_supported: int
    partitions: tuple[int, ...]
    unsupported_operators: tuple[str, ...]
    n_dynamic: int
    caveats: tuple[str, ...]
    suitability: str

    @property
    def share(self) -> float:
        """Share of the nodes that NNAPI would run, 0 to 1."""
        return self.n_supported / self.n_nodes if self.n_nodes else 0.0

    @property
    def text(self) -> str:
        """The report in lines for people."""
        sizes = f" ({', '.join(map(str, self.partitions))} nodes)" if self.partitions else ""
        lines = [
            f"{self.graph}: NNAPI would run {self.n_supported} of {self.n_nodes} nodes ({self.share:.1%}); "
            f"partitions: {len(self.partitions)}{sizes}; worth trying: {self.suitability}"
        ]
        if self.unsupported_operators:
            lines.append(f"  operators that NNAPI does not have: {', '.join(self.unsupported_operators)}")
        if self.n_dynamic:
            lines.append(f"  nodes with inputs of no fixed shape: {self.n_dynamic}")
        lines += [f"  condition not checked: {caveat}" for caveat in self.caveats]
        return "\n".join(lines)

    def as_json(self) -> Mapping[str, Any]:
        """The attributes as JSON values."""
        return asdict(self)


def mobile_report(graph: str, model: ModelProto) -> MobileReport:
    """Check a graph for NNAPI.

    Args:
        graph: what the report calls it.
        model: the weights need only have types and shapes, no data.

    Raises:
        BackendUnavailableError: this ONNX Runtime comes without the checker, or without its list of operators.
    """
    shaped = shape_inference.infer_shapes(model, strict_mode=True)
    hash_before = NodeProto.__hash__
    try:
        from onnxruntime.tools.mobile_helpers.usability_checker import check_nnapi_partitions

        found = check_nnapi_partitions(shaped, require_fixed_input_sizes=True)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise BackendUnavailableError(
            f"the mobile-usability checker of ONNX Runtime is not whole ({error}); install it again with `pip install onnxruntime`"
        ) from error
    finally:
        NodeProto.__hash__ = hash_before  # type: ignore[method-assign]  # the checker replaced it
    return MobileReport(
        graph=graph,
        n_nodes=found.num_nodes,
        n_supported=found.num_supported_nodes,
        partitions=tuple(len(group) for group in found.supported_groups),
        unsupported_operators=tuple(sorted(found.unsupported_ops)),
        n_dynamic=found.nodes_unsupported_due_to_dynamic_input,
        caveats=tuple(found.supported_ops_checker.get_caveats()),
        suitability=found.suitability().name,
    )
