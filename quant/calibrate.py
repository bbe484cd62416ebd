"""Calibration of the float model: what enters each of its linear layers while it reads a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgelm.quant.input_statistics import InputAccumulator, InputStatistics
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scratch import Scratch
from edgelm.quant.stepped_model import SteppedModel, Tokens
from edgelm.quant.tensor_formats import OUTPUT


def calibrate(
    model: SteppedModel,
    windows: Tokens,
    n_batch: int,
    outer: bool,
    threads: RowThreads,
    scratch: Scratch,
    say: Callable[[str, int, int], None],
) -> Iterator[tuple[tuple[str, ...], InputStatistics]]:
    """Names of weights that have an input in common, and its statistics; the output layer's come last.

    Memory holds one batch of windows and the sums of one block; the streams rest on the disk.

    Args:
        windows: tokens [n_windows, n].
        n_batch: windows at a time.
        outer: also the sums of x x^T.
        say: told what is being done, and how many blocks of how many are done.
    """
    starts = range(0, len(windows), n_batch)
    for start in starts:
        scratch.put(("stream", start), model.embed(windows[start : start + n_batch], {}))
    for layer in range(model.n_layers):
        say(f"block {layer + 1} of {model.n_layers}", layer, model.n_layers)
        groups = model.linear_groups(layer)
        sums: list[InputAccumulator] = []
        for start in starts:
            state = model.begin(layer, scratch.get(("stream", start)), {})
            for i, step in enumerate(model.steps(layer, {})):
                x = state.inputs.reshape(-1, state.inputs.shape[-1])
                if start == 0:
                    sums.append(InputAccumulator(groups[i][0], x.shape[1], outer, threads))
                sums[i].add(x)
                state = step(state)
            scratch.put(("stream", start), state.stream)
        yield from zip(groups, (each.finish() for each in sums), strict=True)
    final = InputAccumulator(OUTPUT, model.end(scratch.get(("stream", 0))).inputs.shape[-1], outer, threads)
    for start in starts:
        inputs = model.end(scratch.get(("stream", start))).inputs
        final.add(inputs.reshape(-1, inputs.shape[-1]))
    yield (OUTPUT,), final.finish()
