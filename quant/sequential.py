"""Quantizing block by block: each linear layer sees the inputs that the layers quantized before it leave.

Two paths run side by side over the calibration text, the float model and the one being quantized. Before each step of a block the inputs
of both are known, a and b; the layers that take them are quantized for b to give what the float layers give for a; then both paths take
the step. Between the steps the states rest on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.quant.block_format import BlockFormat
from edgelm.quant.blocks import F32
from edgelm.quant.input_statistics import InputAccumulator
from edgelm.quant.matrix import LinearInputs, Method, QuantizedMatrix, quantize_matrix
from edgelm.quant.model_file import Tensor
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scratch import Scratch
from edgelm.quant.stepped_model import State, Step, SteppedModel, Tokens

Array = NDArray[np.float32]
Streams = Sequence[Array]
_FLOAT, _QUANTIZED = "float", "quantized"


@dataclass(frozen=True, eq=False)
class Paths:
    """The windows of text in batches, and both paths' states of each on the disk."""

    model: SteppedModel
    n_batches: int
    scratch: Scratch

    def stream(self, path: str, batch: int) -> Array:
        return self.scratch.get((path, "stream", batch))

    def state(self, path: str, batch: int) -> State:
        return State(self.stream(path, batch), self.scratch.get((path, "inputs", batch)))

    def put(self, path: str, batch: int, state: State) -> None:
        self.scratch.put((path, "stream", batch), state.stream)
        self.scratch.put((path, "inputs", batch), state.inputs)


def quantize_block(
    paths: Paths,
    layer: int,
    tensors: Mapping[str, Tensor],
    formats: Mapping[str, BlockFormat],
    method: Method,
    threads: RowThreads,
    finished: Callable[[str, QuantizedMatrix], None],
) -> None:
    """Quantize the linear layers of one block, whose streams the paths hold; afterwards they hold the next block's.

    Args:
        tensors: the model's, by GGUF name.
        formats: what each linear layer becomes.
        finished: called with each name and result.
    """
    model = paths.model
    floats: dict[str, Tensor] = {}
    replaced: dict[str, Tensor] = {}
    for path, weights in ((_FLOAT, floats), (_QUANTIZED, replaced)):
        for batch in range(paths.n_batches):
            paths.put(path, batch, model.begin(layer, paths.stream(path, batch), weights))
    float_steps, steps = model.steps(layer, floats), model.steps(layer, replaced)
    for names, float_step, step in zip(model.linear_groups(layer), float_steps, steps, strict=True):
        floats.update((name, _float32(tensors[name])) for name in names)  # once for all batches
        inputs = _inputs(paths, names[0], method)
        for name in names:
            matrix = quantize_matrix(floats[name].dequantize(), formats[name], method, inputs, threads)
            finished(name, matrix)
            replaced[name] = _float32(Tensor(name, tensors[name].shape, matrix.format, matrix.data))
        for batch in range(paths.n_batches):
            _advance(paths, _FLOAT, batch, float_step)
            _advance(paths, _QUANTIZED, batch, step)
        floats.clear()
        replaced.clear()


def _advance(paths: Paths, path: str, batch: int, step: Step) -> None:
    paths.put(path, batch, step(paths.state(path, batch)))


def _inputs(paths: Paths, name: str, method: Method) -> LinearInputs:
    """Of the linear layers that come next, over all batches."""
    n_in = paths.state(_QUANTIZED, 0).inputs.shape[-1]
    accumulator = InputAccumulator(name, n_in, outer=method.name == "gptq")
    drift = np.zeros((n_in, n_in), np.float32) if method.name == "gptq" and method.corrects else None
    for batch in range(paths.n_batches):
        b = paths.state(_QUANTIZED, batch).inputs.reshape(-1, n_in)
        accumulator.add(b)
        if drift is not None:
            a = paths.state(_FLOAT, batch).inputs.reshape(-1, n_in)
            drift += (a - b).T @ b
    statistics = accumulator.finish()
    n = np.float32(statistics.n_tokens)
    if statistics.outer is None:
        return LinearInputs(statistics.squares / n)
    if drift is not None:
        drift /= n
    return LinearInputs.of(statistics.outer / n, method.damping, drift)


def _float32(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.shape, F32, tensor.dequantize().reshape(-1).view(np.uint8))


def start_paths(model: SteppedModel, windows: Tokens, n_batch: int, scratch: Scratch) -> Paths:
    """Both paths before the first block, of windows [n_windows, n], n_batch of them at a time."""
    starts = range(0, len(windows), n_batch)
    for batch, start in enumerate(starts):
        stream = model.embed(windows[start : start + n_batch])
        for path in (_FLOAT, _QUANTIZED):
            scratch.put((path, "stream", batch), stream)
    return Paths(model, len(starts), scratch)


def folder_of(target: Path) -> Path:
    """Where intermediate results of a file that is to be written are kept: on the same disk."""
    return target.resolve().parent
