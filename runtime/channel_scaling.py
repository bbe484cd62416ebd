"""What is chosen with a pass of the float model before it is quantized: by what channels are scaled, and what enters the output layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from edgelm.runtime.calibration_windows import batch_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgelm.quant.channel_scaling import ChannelScaling
    from edgelm.quant.goals import Goal
    from edgelm.quant.input_statistics import Calibration, InputStatistics
    from edgelm.quant.matrix import Method
    from edgelm.quant.memory_limit import MemoryLimit
    from edgelm.quant.model_file import ModelFile
    from edgelm.quant.quantize import Say
    from edgelm.quant.row_threads import RowThreads
    from edgelm.quant.scratch import Scratch
    from edgelm.quant.work_folder import WorkFolder

    Group = tuple[tuple[str, ...], InputStatistics]

_TOKENS = 8192  # of the calibration text: one number is chosen for some hundred channels


def choose_scalings(
    file: ModelFile,
    goals: Mapping[str, Goal],
    method: Method,
    known: Calibration | NDArray[np.int32],
    work: WorkFolder,
    threads: RowThreads,
    say: Say,
    memory: MemoryLimit,
) -> tuple[ChannelScaling, ...]:
    """For all folds of a model whose inputs are known: as an interrupted run did, and newly where it had not come.

    Args:
        known: statistics of the inputs, or the windows of tokens [n_windows, n] to take them from.
        memory: looked at after each fold.
    """
    from edgelm.backends.config import read_config
    from edgelm.quant.channel_folds import HeadSizes, model_folds
    from edgelm.quant.channel_scaling import scale_model
    from edgelm.quant.scaling_record import save_scaling, stored_output_inputs, stored_scaling
    from edgelm.quant.scratch import Scratch

    config = read_config(file.metadata)
    heads = HeadSizes(config.n_heads, config.n_kv_heads, config.head_dim)
    formats = {name: goal.format for name, goal in goals.items() if goal.is_quantized}
    kept = {name for name, goal in goals.items() if goal.is_kept and len(goal.shape) > 1}
    folds = {fold: stored_scaling(work, fold) for fold in model_folds(file.tensors, config.n_layers, heads, kept)}
    scalings = [scaling for scaling in folds.values() if scaling]
    to_do = [fold for fold, scaling in folds.items() if scaling is None]
    if to_do or (not isinstance(known, Mapping) and stored_output_inputs(work) is None):
        with Scratch(work.path.parent) as scratch:
            groups = _known(known) if isinstance(known, Mapping) else _measured(file, known, method, work, threads, scratch, say)
            for scaling in scale_model(file.tensors, to_do, groups, formats, method, threads):
                save_scaling(work, scaling)
                scalings.append(scaling)
                memory.check()
    return tuple(scalings)


def scaled_columns(scalings: Iterable[ChannelScaling]) -> dict[str, NDArray[np.float32]]:
    """By what the columns of each scaled matrix were multiplied, float32 [n_in]."""
    return {name: each.factors[each.fold.source] for each in scalings if each.alpha for name in each.fold.consumers}


def _known(calibration: Calibration) -> list[Group]:
    """Weights with the same statistics together."""
    groups: dict[int, tuple[list[str], InputStatistics]] = {}
    for name, statistics in calibration.items():
        if statistics.n_tokens:
            groups.setdefault(id(statistics), ([], statistics))[0].append(name)
    return [(tuple(names), statistics) for names, statistics in groups.values()]


def _measured(
    file: ModelFile,
    windows: NDArray[np.int32],
    method: Method,
    work: WorkFolder,
    threads: RowThreads,
    scratch: Scratch,
    say: Say,
) -> Iterator[Group]:
    """From some of the windows, from all over the text. What is known of the output layer is kept for an embedding that is that, too."""
    import numpy as np

    from edgelm.backends.block_steps import BlockSteps
    from edgelm.quant.calibrate import calibrate
    from edgelm.quant.scaling_record import save_output_inputs
    from edgelm.quant.tensor_formats import OUTPUT

    n = min(len(windows), max(1, _TOKENS // int(windows.shape[1])))
    some = windows[np.linspace(0, len(windows) - 1, n).round().astype(int)]
    model = BlockSteps(file, some.shape[1], threads)

    def tell(what: str, n_done: int, n_all: int) -> None:
        say(f"channels of {what}", n_done, n_all)

    for names, statistics in calibrate(model, some, batch_size(model.config, some), method.name == "gptq", threads, scratch, tell):
        if names == (OUTPUT,):
            save_output_inputs(work, statistics)
        yield names, statistics
