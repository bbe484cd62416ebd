"""Quantizing block by block: each linear layer sees the inputs that the layers quantized before it leave.

Two paths run side by side over the calibration text, the float model and the one being quantized. Before each step of a block the inputs
of both are known, a and b; the layers that take them are quantized for b to give what the float layers give for a; then both paths take
the step. Between the steps the states rest on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.quant.block_format import BlockFormat
from edgelm.quant.blocks import F32
from edgelm.quant.input_statistics import InputAccumulator, add_products
from edgelm.quant.matrix import LinearInputs, Method, QuantizedMatrix, naming, quantize_by_what_is_known
from edgelm.quant.model_file import Tensor
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scratch import Scratch
from edgelm.quant.stepped_model import State, Step, SteppedModel, Tokens
from edgelm.quant.work_folder import WorkFolder
from edgelm.quant.work_manifest import StoredArray

Array = NDArray[np.float32]
_FLOAT, _QUANTIZED = "float", "quantized"


@dataclass(frozen=True, eq=False)
class Paths:
    """The windows of text in batches, and both paths' states of each on the disk."""

    model: SteppedModel
    n_batches: int
    scratch: Scratch

    def stream(self, path: str, batch: int) -> Array:
        return self.scratch.mapped((path, "stream", batch))

    def state(self, path: str, batch: int) -> State:
        return State(self.stream(path, batch), self.inputs(path, batch))

    def inputs(self, path: str, batch: int) -> Array:
        return self.scratch.mapped((path, "inputs", batch))

    def put(self, path: str, batch: int, state: State) -> None:
        self.scratch.put((path, "stream", batch), state.stream)
        self.scratch.put((path, "inputs", batch), state.inputs)

    def advance(self, path: str, batch: int, step: Step) -> None:
        """Take a step; half of them leave the stream as it is."""
        before = self.state(path, batch)
        after = step(before)
        if after.stream is not before.stream:
            self.scratch.put((path, "stream", batch), after.stream)
        self.scratch.put((path, "inputs", batch), after.inputs)

    def save(self, work: WorkFolder, n_blocks: int) -> None:
        """Make the streams after so many blocks a checkpoint; `resume_paths` reads it."""
        with work.new_state(str(n_blocks)) as state:
            for path in (_FLOAT, _QUANTIZED):
                for batch in range(self.n_batches):
                    state.append(path, self.stream(path, batch))


def quantize_block(
    paths: Paths,
    layer: int,
    tensors: Mapping[str, Tensor],
    formats: Mapping[str, BlockFormat],
    method: Method,
    threads: RowThreads,
    finished: Callable[[str, QuantizedMatrix], None],
    done: Mapping[str, Tensor],
) -> None:
    """Quantize the linear layers of one block, whose streams the paths hold; afterwards they hold the next block's.

    Args:
        tensors: the model's, by GGUF name.
        formats: what each linear layer becomes; those that it does not name stay as they are.
        finished: called with each name and result.
        done: linear layers that were quantized before the work was interrupted.
    """
    model = paths.model
    floats, replaced = dict(tensors), dict(tensors)  # so that the model does not read them again for every batch
    for path, weights in ((_FLOAT, floats), (_QUANTIZED, replaced)):
        for batch in range(paths.n_batches):
            paths.put(path, batch, model.begin(layer, paths.stream(path, batch), weights))
    float_steps, steps = model.steps(layer, floats), model.steps(layer, replaced)
    for names, float_step, step in zip(model.linear_groups(layer), float_steps, steps, strict=True):
        floats.update((name, _float32(tensors[name])) for name in names)  # once for all batches
        replaced.update((name, _float32(done[name]) if name in done else floats[name]) for name in names)
        to_do = {name: formats[name] for name in names if name in formats and name not in done}
        for name, matrix in _quantize_group(paths, floats, to_do, method, threads):
            finished(name, matrix)
            replaced[name] = _float32(Tensor(name, tensors[name].shape, matrix.format, matrix.data))
        for batch in range(paths.n_batches):
            paths.advance(_FLOAT, batch, float_step)
            paths.advance(_QUANTIZED, batch, step)
        for weights in (floats, replaced):
            weights.update((name, tensors[name]) for name in names)  # gives the memory back


def _quantize_group(
    paths: Paths, floats: Mapping[str, Tensor], formats: Mapping[str, BlockFormat], method: Method, threads: RowThreads
) -> Iterator[tuple[str, QuantizedMatrix]]:
    """Layers of F32 weights that take the same inputs, which are known only as long as they are needed here."""
    inputs = _inputs(paths, next(iter(formats)), method, threads) if formats else None
    for name, block_format in formats.items():
        weights = floats[name].data.view(np.float32).reshape(floats[name].shape)
        with naming(name):
            matrix = quantize_by_what_is_known(weights, block_format, method, inputs, threads)
        yield name, matrix


def _inputs(paths: Paths, name: str, method: Method, threads: RowThreads) -> LinearInputs:
    """Of the linear layers that come next, over all batches. For GPTQ, memory holds three matrices [n_in, n_in] at the most."""
    n_in = paths.inputs(_QUANTIZED, 0).shape[-1]
    accumulator = InputAccumulator(name, n_in, method.name == "gptq", threads)
    drift = np.zeros((n_in, n_in), np.float32) if method.name == "gptq" and method.corrects else None
    for batch in range(paths.n_batches):
        b = paths.inputs(_QUANTIZED, batch).reshape(-1, n_in)
        accumulator.add(b)
        if drift is not None:
            a = paths.inputs(_FLOAT, batch).reshape(-1, n_in)
            add_products(drift, a - b, b, threads)
    statistics = accumulator.finish()
    n, outer = np.float32(statistics.n_tokens), statistics.outer
    if outer is None:
        return LinearInputs(statistics.squares / n)
    for sums in (outer,) if drift is None else (outer, drift):
        sums /= n
    with naming(name):
        return LinearInputs.of(outer, method.damping, threads, drift)


def _float32(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.shape, F32, tensor.dequantize().reshape(-1).view(np.uint8))


def output_inputs(paths: Paths, method: Method, threads: RowThreads) -> LinearInputs:
    """Of the output layer, after the last block."""
    return _inputs(paths, "the output layer", method, threads)


def start_paths(model: SteppedModel, windows: Tokens, n_batch: int, scratch: Scratch, replaced: Mapping[str, Tensor]) -> Paths:
    """Both paths before the first block, of windows [n_windows, n], n_batch of them at a time.

    Args:
        replaced: the quantized embedding, by its name, where it was quantized.
    """
    starts = range(0, len(windows), n_batch)
    for batch, start in enumerate(starts):
        scratch.put((_FLOAT, "stream", batch), model.embed(windows[start : start + n_batch], {}))
        scratch.put((_QUANTIZED, "stream", batch), model.embed(windows[start : start + n_batch], replaced))
    return Paths(model, len(starts), scratch)


def resume_paths(model: SteppedModel, streams: Mapping[str, StoredArray], n_batch: int, scratch: Scratch) -> Paths:
    """Both paths as `Paths.save` stored them, with the states that lie before the output layer, in case no block is left."""
    paths = Paths(model, -(-streams[_FLOAT].shape[0] // n_batch), scratch)
    for path in (_FLOAT, _QUANTIZED):
        for batch, stream in enumerate(streams[path].chunks(n_batch)):
            paths.put(path, batch, model.end(stream))
    return paths
