"""What was chosen for the channels of a model, kept in the work folder, so that work that is resumed goes on with the same model."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from edgelm.quant.blocks import F32
from edgelm.quant.channel_folds import HeadSizes, folds_of
from edgelm.quant.channel_scaling import ChannelScaling
from edgelm.quant.model_file import ModelFile
from edgelm.quant.work_folder import WorkFolder

_NAME = "channel scaling"  # no tensor's name: those have no spaces


def save_scalings(work: WorkFolder, scalings: Sequence[ChannelScaling]) -> None:
    """Keep what scales: all factors in one array, and where they belong. The rest is not needed again."""
    kept = [scaling for scaling in scalings if scaling.alpha]
    factors = np.concatenate([scaling.factors for scaling in kept] or [np.empty(0, np.float32)])
    folds = [{"consumer": scaling.fold.consumers[0], "alpha": scaling.alpha, "gain": scaling.gain} for scaling in kept]
    work.save_tensor(_NAME, F32, factors.shape, factors.view(np.uint8), {"folds": json.dumps(folds)})


def stored_scalings(work: WorkFolder, file: ModelFile, heads: HeadSizes) -> tuple[ChannelScaling, ...] | None:
    """What was kept; None where nothing has been chosen yet."""
    if _NAME not in work.finished:
        return None
    factors, start = work.load_tensor(_NAME).view(np.float32), 0
    scalings = []
    for row in json.loads(str(work.finished[_NAME].facts["folds"])):
        consumer = row["consumer"]
        fold = next(fold for fold in folds_of(file.tensors, int(consumer.split(".")[1]), heads) if consumer in fold.consumers)
        scalings.append(ChannelScaling(fold, row["alpha"], row["gain"], factors[start : start + fold.n_channels].copy()))
        start += fold.n_channels
    return tuple(scalings)
