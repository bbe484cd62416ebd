"""What quantizing each tensor costs the model's predictions: the damages that a plan of mixed precision adds up.

The mean KL divergence of the predictions from the float model's is quadratic in a small change of weights, and the changes of different
tensors are nearly independent of one another. So it is measured once for each group of linear layers with a common input (q, k, v; o; gate,
up; down; the embedding; the output layer), quantized coarsely while all else stays as it is:

    damage of a group     mean KL(float || this group coarse), over a few windows of text
    of a tensor in it     that, times its part of the squares by which the group's tensors, each alone, change what the block leaves
    in another format     that, times the error of the layer's outputs in this format over the one in the coarse format

All probes go through the model side by side, block after block, so that the weights of a block are decoded once; the streams between the
blocks rest on the disk. Formats are compared on some rows of each tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.blocks import F16, F32, IQ4_NL, IQ4_XS, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0
from edgelm.quant.format_errors import Coarse, coarsest
from edgelm.quant.matrix import LinearInputs
from edgelm.quant.mixed_precision import Choice, TensorOptions
from edgelm.quant.model_file import Tensor
from edgelm.quant.piecewise_divergence import OutputLayer, piecewise_divergence
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scratch import Scratch
from edgelm.quant.stepped_model import State, Step, SteppedModel, Tokens
from edgelm.quant.tensor_formats import EMBEDDING, OUTPUT

Array = NDArray[np.float32]
Names = tuple[str, ...]
Replaced = Mapping[str, Tensor]
Coarsen = Callable[[Tensor, LinearInputs | None], Coarse | None]
Say = Callable[[str, int, int], None]

CANDIDATES = (Q4_0, IQ4_NL, IQ4_XS, Q4_K, Q4_1, Q5_0, Q5_K, Q5_1, Q6_K, Q8_0)
_FLOAT = "float"  # the key of the float model's stream


class PredictingModel(SteppedModel, OutputLayer, Protocol):
    """A model in steps, with its output layer; backends/block_steps.py is one."""


@dataclass(frozen=True)
class Probed:
    """How a tensor was probed.

    Attributes:
        probe: the tensors that were made coarse together; none where the tensor fits no candidate.
        share: of the probe's damage that is this tensor's.
        errors: by the formats that can hold it, in parts of the coarse one's.
    """

    probe: Names = ()
    share: float = 0.0
    errors: Mapping[BlockFormat, float] = field(default_factory=dict)


def measure_options(
    model: PredictingModel,
    tensors: Mapping[str, Tensor],
    windows: Tokens,
    candidates: Sequence[BlockFormat],
    threads: RowThreads,
    scratch: Scratch,
    say: Say,
) -> tuple[TensorOptions, ...]:
    """Damages, in nats of mean KL divergence, of every linear layer, the embedding and the output layer in every format that can hold it.

    A tensor whose rows are whole blocks of no candidate has one choice: F16, without damage.

    Args:
        tensors: the model's, by GGUF name.
        windows: tokens [n_windows, n], computed all together.
        candidates: of the formats. The one with the greatest error in a tensor is its coarse one.
        scratch: holds 4 n_embd bytes for each token and group.
        say: told what is being done, and how much of how much is done.

    Raises:
        InvalidRequestError: no candidates or no tokens, or weights that are not finite; the text names the tensor.
        MeasurementError: the predictions are no numbers.
        ModelFileError: the disk is full, or fails.
    """
    if not candidates or not windows.size:
        raise InvalidRequestError("there are no formats to choose from, or no tokens to measure with; give both")
    sweep = _Sweep(model, tensors, scratch, lambda tensor, inputs: coarsest(tensor, candidates, inputs, threads))
    costs = _costs(model, tensors)
    done = [0, *accumulate(costs)]
    sweep.begin(windows)
    for layer in range(model.n_layers):
        say(f"probing block {layer + 1} of {model.n_layers}", done[layer], done[-1])
        sweep.block(layer)
    damages = sweep.end(lambda piece, n: say("comparing predictions", done[-2] + costs[-1] * piece // n, done[-1]))
    return tuple(_options(tensors[name], probed, damages) for name, probed in sweep.probed.items())


class _Sweep:
    """All probes on their way through the model.

    Attributes:
        probed: by name, in the order of the forward pass.
    """

    def __init__(self, model: PredictingModel, tensors: Mapping[str, Tensor], scratch: Scratch, coarsen: Coarsen) -> None:
        self._model, self._tensors, self._scratch, self._coarsen = model, tensors, scratch, coarsen
        self._probes: dict[Names, Replaced] = {}  # and what stands in for the embedding or the output layer
        self.probed: dict[str, Probed] = {}

    def begin(self, windows: Tokens) -> None:
        """The stream before the first block, and that of a coarse embedding."""
        self._scratch.put(_FLOAT, self._model.embed(windows, {}))
        coarse = self._made_coarse((EMBEDDING,), self._tensors, None)
        self._start(coarse, {EMBEDDING: 1.0}, lambda replaced: self._model.embed(windows, replaced), _replacing(coarse))

    def block(self, layer: int) -> None:
        """Take all streams through a block, where the probes of its own linear layers begin."""
        model, scratch = self._model, self._scratch
        groups = model.linear_groups(layer)
        floats = {name: _float32(self._tensors[name]) for names in groups for name in names}  # decoded once for all probes
        steps = model.steps(layer, floats)
        for probe in self._probes:
            scratch.put(probe, _advanced(model.begin(layer, scratch.get(probe), floats), steps))
        states = [model.begin(layer, scratch.get(_FLOAT), floats)]
        for step in steps:
            states.append(step(states[-1]))
        scratch.put(_FLOAT, states[-1].stream)
        for n, names in enumerate(groups):
            coarse = self._made_coarse(names, floats, _inputs(states[n]))

            def left(replaced: Replaced, n: int = n) -> Array:
                return _advanced(states[n], model.steps(layer, {**floats, **replaced})[n:])

            changes = dict.fromkeys(coarse, 1.0)
            if len(coarse) > 1:
                changes = {name: _squares(left({name: each.tensor}) - states[-1].stream) for name, each in coarse.items()}
            self._start(coarse, changes, left, {})

    def end(self, say: Callable[[int, int], None]) -> Mapping[Names, float]:
        """The damage of each probe, that of the output layer among them."""
        model, scratch = self._model, self._scratch
        last = model.end(scratch.get(_FLOAT))
        if OUTPUT in self._tensors:
            coarse = self._made_coarse((OUTPUT,), self._tensors, _inputs(last))
            self._start(coarse, {OUTPUT: 1.0}, lambda _: last.stream, _replacing(coarse))

        def other(probe: Names) -> tuple[Array, Replaced]:
            return _flat(model.end(scratch.get(probe)).inputs), self._probes[probe]

        others = [partial(other, probe) for probe in self._probes]
        divergence = piecewise_divergence(model, _flat(last.inputs), others, say)
        return dict(zip(self._probes, divergence.mean(axis=1).tolist(), strict=True))

    def _made_coarse(self, names: Names, source: Mapping[str, Tensor], inputs: LinearInputs | None) -> dict[str, Coarse]:
        """Those of the tensors that some candidate can hold."""
        self.probed.update((name, Probed()) for name in names)
        found = {name: self._coarsen(source[name], inputs) for name in names}
        return {name: coarse for name, coarse in found.items() if coarse is not None}

    def _start(self, coarse: Mapping[str, Coarse], changes: Mapping[str, float], left: Callable[[Replaced], Array], kept: Replaced) -> None:
        """Begin a probe of these tensors, which leaves a stream.

        Args:
            changes: squares, from which the tensors' shares are known.
            left: the stream that the model with these tensors leaves.
            kept: what stands in for tensors at the model's end.
        """
        if not coarse:
            return
        probe, total = tuple(coarse), sum(changes.values())
        for name, each in coarse.items():
            self.probed[name] = Probed(probe, changes[name] / total if total else 0.0, each.errors)
        self._probes[probe] = kept
        self._scratch.put(probe, left(_replacing(coarse)))


def _options(tensor: Tensor, probed: Probed, damages: Mapping[Names, float]) -> TensorOptions:
    if not probed.probe:
        return TensorOptions(tensor.name, tensor.shape, (Choice(F16.name, F16.nbytes(tensor.shape), 0.0),))
    damage = damages[probed.probe] * probed.share
    choices = tuple(Choice(each.name, each.nbytes(tensor.shape), damage * error) for each, error in probed.errors.items())
    return TensorOptions(tensor.name, tensor.shape, choices)


def _costs(model: PredictingModel, tensors: Mapping[str, Tensor]) -> list[int]:
    """Weights that are passed in each block and by the output layer, for a progress bar: in every block more probes are under way."""
    costs, n_probes = [], 1
    for layer in range(model.n_layers):
        groups = model.linear_groups(layer)
        n_weights = sum(math.prod(tensors[name].shape) for names in groups for name in names)
        n_probes += len(groups)
        costs.append(n_probes * n_weights)
    return [*costs, n_probes * math.prod(tensors[EMBEDDING].shape)]


def _advanced(state: State, steps: Sequence[Step]) -> Array:
    """The stream after the steps."""
    for step in steps:
        state = step(state)
    return state.stream


def _replacing(coarse: Mapping[str, Coarse]) -> Replaced:
    return {name: each.tensor for name, each in coarse.items()}


def _inputs(state: State) -> LinearInputs:
    return LinearInputs(np.mean(np.square(_flat(state.inputs)), axis=0))


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _squares(x: Array) -> float:
    return float(np.vdot(x, x))


def _float32(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.shape, F32, tensor.dequantize().reshape(-1).view(np.uint8))
