"""What a quantization tells when it is done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgelm.quant.goals import Goal
    from edgelm.quant.mixed_precision import Plan
    from edgelm.quant.work_folder import WorkFolder


@dataclass(frozen=True)
class TensorReport:
    """What became of one matrix.

    Attributes:
        source, format: block formats before and after.
        bits: per weight, after.
        error: of the layer's outputs on the calibration text, mean |(W - Q) x|^2 / mean |W x|^2; without a text |W - Q|^2 / |W|^2;
            None where it was kept.
        reason: why it has this format.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    format: str
    bits: float
    error: float | None
    reason: str


@dataclass(frozen=True)
class QuantizeReport:
    """What a quantization did.

    Attributes:
        target: the file.
        n_bytes: of the file.
        bits_per_weight: of its matrices, on average.
        tensors: its matrices.
        method: how they were quantized.
        scaled_channels: whether channels between layers were scaled first.
        n_tokens: of the calibration text that were used.
        seconds: that this run took; less than the work, where it went on from an interruption.
        peak_bytes: greatest resident memory of the process so far.
        notes: what should be said aloud.
        plan: of mixed precision, where one was made or followed.
    """

    target: Path
    n_bytes: int
    bits_per_weight: float
    tensors: tuple[TensorReport, ...]
    method: str
    scaled_channels: bool
    n_tokens: int
    seconds: float
    peak_bytes: int
    notes: tuple[str, ...]
    plan: Plan | None = None


def tensor_reports(goals: Mapping[str, Goal], work: WorkFolder) -> tuple[TensorReport, ...]:
    """Of all matrices, those to be quantized finished."""
    from edgelm.quant.tensor_formats import bits_per_weight

    finished = work.finished
    return tuple(
        TensorReport(
            name,
            goal.shape,
            source=goal.source.name,
            format=goal.format.name,
            bits=bits_per_weight(goal.format),
            error=float(finished[name].facts["error"]) if goal.is_quantized else None,
            reason=goal.resolved.reason,
        )
        for name, goal in goals.items()
        if len(goal.shape) > 1
    )


def together(notes: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each reason, however many tensors it is true of."""
    names: dict[str, list[str]] = {}
    for reason, name in notes:
        names.setdefault(reason, []).append(name)
    return [f"{some[0]}{f' and {len(some) - 1} more' if len(some) > 1 else ''}: {reason}" for reason, some in names.items()]


def peak_bytes() -> int:
    """The greatest resident memory of this process so far."""
    import resource
    import sys

    with contextlib.suppress(OSError, StopIteration):  # Linux; what getrusage says there may be the parent's
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
