"""Plans of mixed precision as tables for people: a header and rows of text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from edgelm.quant.file_size import format_size
from edgelm.quant.mixed_precision import Plan, PlannedTensor

Row = tuple[str, ...]
Table = tuple[Row, list[Row]]

_BLOCK = re.compile(r"^blk\.\d+\.|\.weight$")


def summary(plan: Plan) -> Table:
    """A row for each kind of tensor, as "ffn_down" in all blocks, and one for all: how many are stored in which format."""
    kinds: dict[str, list[PlannedTensor]] = defaultdict(list)
    for tensor in plan.tensors:
        kinds[_BLOCK.sub("", tensor.name)].append(tensor)
    rows = [(kind, _counts(tensors), *_figures(tensors, plan)) for kind, tensors in kinds.items()]
    total = ("all", _counts(plan.tensors), *_figures(plan.tensors, plan))
    return ("TENSOR", "FORMATS", "BITS PER WEIGHT", "SIZE", "PREDICTED ERROR", "SHARE"), [*rows, total]


def listing(plan: Plan) -> Table:
    """A row for each tensor."""
    rows = [(t.name, " x ".join(map(str, t.shape)), t.format, *_figures([t], plan)) for t in plan.tensors]
    return ("TENSOR", "SHAPE", "FORMAT", "BITS PER WEIGHT", "SIZE", "PREDICTED ERROR", "SHARE"), rows


def _counts(tensors: Sequence[PlannedTensor]) -> str:
    """ "12 x Q4_1, 18 x Q5_0", from the smallest format to the largest."""
    bits = {tensor.format: tensor.bits_per_weight for tensor in tensors}
    counts = Counter(tensor.format for tensor in tensors)
    return ", ".join(f"{counts[name]} x {name}" for name in sorted(counts, key=lambda name: (bits[name], name)))


def _figures(tensors: Sequence[PlannedTensor], plan: Plan) -> Row:
    n_bytes, error = sum(t.n_bytes for t in tensors), sum(t.error for t in tensors)
    bits = 8 * n_bytes / sum(t.n_weights for t in tensors)
    share = f"{error / plan.error:.1%}" if plan.error else ""
    return f"{bits:.2f}", format_size(n_bytes), f"{error:.3g}", share
