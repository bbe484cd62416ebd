"""What a pass of the float model has told, kept in the work folder, so that work that is resumed goes on with the same model."""

from __future__ import annotations

import numpy as np

from edgelm.quant.blocks import F32
from edgelm.quant.channel_folds import Fold
from edgelm.quant.channel_scaling import ChannelScaling
from edgelm.quant.input_statistics import InputStatistics
from edgelm.quant.work_folder import WorkFolder

_OUTPUT_INPUTS = "inputs of the output layer"  # no tensor's name: those have no spaces


def save_scaling(work: WorkFolder, scaling: ChannelScaling) -> None:
    """Keep what was chosen for a fold; of one that is not scaled, only that."""
    factors = scaling.factors if scaling.alpha else np.empty(0, np.float32)
    work.save_tensor(_name(scaling.fold), F32, factors.shape, factors.view(np.uint8), {"alpha": scaling.alpha, "gain": scaling.gain})


def stored_scaling(work: WorkFolder, fold: Fold) -> ChannelScaling | None:
    """What was kept for a fold; None where nothing has been chosen yet."""
    kept = work.finished.get(_name(fold))
    if kept is None:
        return None
    alpha, gain = float(kept.facts["alpha"]), float(kept.facts["gain"])
    factors = work.load_tensor(kept.name).view(np.float32).copy() if alpha else np.ones(fold.n_channels, np.float32)
    return ChannelScaling(fold, alpha, gain, factors)


def save_output_inputs(work: WorkFolder, statistics: InputStatistics) -> None:
    """Keep the statistics of the output layer's inputs: squares and, where they are known, outer products."""
    rows = statistics.squares[None] if statistics.outer is None else np.concatenate([statistics.squares[None], statistics.outer])
    work.save_tensor(_OUTPUT_INPUTS, F32, rows.shape, rows.reshape(-1).view(np.uint8), {"n_tokens": float(statistics.n_tokens)})


def stored_output_inputs(work: WorkFolder) -> InputStatistics | None:
    """What was kept of them; None where they were not reached yet."""
    kept = work.finished.get(_OUTPUT_INPUTS)
    if kept is None:
        return None
    squares, *_ = rows = work.load_tensor(kept.name).view(np.float32).reshape(kept.shape)
    return InputStatistics(int(kept.facts["n_tokens"]), squares, rows[1:] if len(rows) > 1 else None)


def _name(fold: Fold) -> str:
    return f"channel scaling of {fold.consumers[0]}"  # no tensor's name: those have no spaces
