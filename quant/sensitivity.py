"""What quantizing each tensor costs the model's predictions: the damages that a plan of mixed precision adds up.

The mean KL divergence of the predictions from the float model's is quadratic in a small change, and what different tensors do is nearly
independent. So each group of linear layers with a common input (q, k, v; o; gate, up; down; the embedding; the output layer) is quantized
coarsely while all else stays as it is, and the damage this does is shared out by what happens near by:

    damage of tensor i in format f = KL(float || the group coarse) * c_i(f) / sum_j c_j(coarse),    c = mean over tokens of |dx|^2 / |x|^2

where dx is the change of the residual stream x at the next sum, when this tensor alone is in that format. Its norm says nearly all of what
later blocks, which normalize the stream, make of it; the error of the layer's own outputs does not: attention averages most of an error in
v away, but not what tokens have in common. For the embedding c is the error of the rows that occur in the text, and for the output layer
that of its outputs on some rows; for an embedding that is both, that of its outputs on the rows that occur.

All probes go through the model side by side, block after block, so that the weights of a block are decoded once; the streams between the
blocks rest on the disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.blocks import F16, F32, IQ4_NL, IQ4_XS, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0
from edgelm.quant.format_trial import FormatTrials, Trial
from edgelm.quant.matrix import LinearInputs
from edgelm.quant.mixed_precision import Choice, TensorOptions
from edgelm.quant.model_file import Tensor
from edgelm.quant.piecewise_divergence import OutputLayer, piecewise_divergence
from edgelm.quant.scratch import Scratch
from edgelm.quant.stepped_model import State, Step, SteppedModel, Tokens
from edgelm.quant.tensor_formats import EMBEDDING, OUTPUT

Array = NDArray[np.float32]
Replaced = Mapping[str, Tensor]
Say = Callable[[str, int, int], None]

CANDIDATES = (Q4_0, IQ4_NL, IQ4_XS, Q4_K, Q4_1, Q5_0, Q5_K, Q5_1, Q6_K, Q8_0)
_FLOAT = "float"  # the key of the float model's stream


class PredictingModel(SteppedModel, OutputLayer, Protocol):
    """A model in steps, with its output layer; backends/block_steps.py is one."""


def measure_options(
    model: PredictingModel, tensors: Mapping[str, Tensor], windows: Tokens, trials: FormatTrials, scratch: Scratch, say: Say
) -> tuple[TensorOptions, ...]:
    """Damages, in nats of mean KL divergence, of every linear layer, the embedding and the output layer in every format that can hold it.

    A tensor that no candidate can hold has one choice: F16, without damage.

    Args:
        tensors: the model's, by GGUF name.
        windows: tokens [n_windows, n], computed all together: memory holds some widest states of theirs.
        trials: the candidates.
        scratch: holds 4 n_embd bytes for each token and group.
        say: told what is being done, and how much of how much is done.

    Raises:
        InvalidRequestError: no candidates or no tokens, or weights that are not finite; the text names the tensor.
        MeasurementError: the predictions are no numbers.
        ModelFileError: the disk is full, or fails.
    """
    if not trials.formats or not windows.size:
        raise InvalidRequestError("there are no formats to choose from, or no tokens to measure with; give both")
    sweep = _Sweep(model, tensors, trials, scratch)
    costs = _costs(model, tensors)
    done = [0, *accumulate(costs)]
    sweep.begin(windows)
    for layer in range(model.n_layers):
        say(f"probing block {layer + 1} of {model.n_layers}", done[layer], done[-1])
        sweep.block(layer)
    sweep.end()
    divergences = sweep.divergences(lambda piece, n: say("comparing predictions", done[-2] + costs[-1] * piece // n, done[-1]))
    return tuple(each for probe, kl in zip(sweep.probes, divergences, strict=True) for each in probe.options(tensors, kl))


@dataclass(frozen=True)
class _Probe:
    """Tensors that are made coarse together, by name."""

    trials: Mapping[str, Trial]

    @property
    def coarse(self) -> Replaced:
        return {name: trial.coarse for name, trial in self.trials.items() if trial.coarse is not None}

    def options(self, tensors: Mapping[str, Tensor], divergence: float) -> list[TensorOptions]:
        """The tensors' damages, of the divergence that all of them do together."""
        total = sum(max(trial.errors.values(), default=0.0) for trial in self.trials.values())
        scale = divergence / total if total else 0.0
        found = []
        for name, trial in self.trials.items():
            errors = trial.errors or {F16: 0.0}
            shape = tensors[name].shape
            found.append(TensorOptions(name, shape, tuple(Choice(f.name, f.nbytes(shape), scale * e) for f, e in errors.items())))
        return found


class _Sweep:
    """All probes on their way through the model.

    Attributes:
        probes: that were begun, in the order of the forward pass.
    """

    def __init__(self, model: PredictingModel, tensors: Mapping[str, Tensor], trials: FormatTrials, scratch: Scratch) -> None:
        self._model, self._tensors, self._trials, self._scratch = model, tensors, trials, scratch
        self.probes: list[_Probe] = []

    def begin(self, windows: Tokens) -> None:
        """The stream before the first block, and that of a coarse embedding."""
        inputs = self._output_inputs(windows) if OUTPUT not in self._tensors else None
        probe = _Probe({EMBEDDING: self._trials.on_rows(self._tensors[EMBEDDING], np.unique(windows), inputs)})
        self._scratch.put(_FLOAT, self._model.embed(windows, {}))
        self._start(probe, self._model.embed(windows, probe.coarse))

    def _output_inputs(self, windows: Tokens) -> LinearInputs:
        """By which an embedding that is the output layer, too, is quantized."""
        model, stream = self._model, self._model.embed(windows, {})
        for layer in range(model.n_layers):
            stream = _advanced(model.begin(layer, stream, {}), model.steps(layer, {}))
        return _inputs(model.end(stream))

    def block(self, layer: int) -> None:
        """Take all streams through a block, where the probes of its own linear layers begin."""
        model, scratch = self._model, self._scratch
        groups = model.linear_groups(layer)
        floats = {name: _float32(self._tensors[name]) for names in groups for name in names}  # decoded once for all probes
        steps = model.steps(layer, floats)
        for n in range(len(self.probes)):
            scratch.put(n, _advanced(model.begin(layer, scratch.get(n), floats), steps))
        states = [model.begin(layer, scratch.get(_FLOAT), floats)]
        for step in steps:
            states.append(step(states[-1]))
        scratch.put(_FLOAT, states[-1].stream)
        for n, names in enumerate(groups):
            probe = _Probe({name: self._tried(layer, floats, states, n, name) for name in names})
            self._start(probe, _advanced(states[n], model.steps(layer, {**floats, **probe.coarse})[n:]))

    def end(self) -> None:
        """The probe of an output layer that is not the embedding."""
        if OUTPUT in self._tensors:
            last = self._model.end(self._scratch.get(_FLOAT))
            rows = np.arange(self._model.n_vocab)
            self._start(_Probe({OUTPUT: self._trials.on_rows(self._tensors[OUTPUT], rows, _inputs(last))}), last.stream)

    def divergences(self, say: Callable[[int, int], None]) -> list[float]:
        """Mean KL divergence of each probe, once all have passed the last block."""
        reference = self._last_inputs(_FLOAT)
        others = [partial(self._other, n) for n in range(len(self.probes))]
        means: list[float] = piecewise_divergence(self._model, reference, others, say).mean(axis=1).tolist()
        return means

    def _tried(self, layer: int, floats: Replaced, states: Sequence[State], n: int, name: str) -> Trial:
        """A linear layer that takes the inputs of states[n]; states: the float model's, before the block's steps and after the last."""
        end = next((i for i in range(n, len(states)) if states[i].stream is not states[n].stream), len(states) - 1)
        stream = states[end].stream

        def change(tensor: Tensor) -> float:
            steps = self._model.steps(layer, {**floats, name: tensor})[n:end]
            return _relative_squares(_advanced(states[n], steps) - stream, stream)

        return self._trials.whole(floats[name], _inputs(states[n]), change)

    def _start(self, probe: _Probe, stream: Array) -> None:
        self._scratch.put(len(self.probes), stream)
        self.probes.append(probe)

    def _other(self, n: int) -> tuple[Array, Replaced]:
        return self._last_inputs(n), self.probes[n].coarse

    def _last_inputs(self, key: object) -> Array:
        return _flat(self._model.end(self._scratch.get(key)).inputs)


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


def _relative_squares(change: Array, stream: Array) -> float:
    """Mean over tokens of |dx|^2 / |x|^2."""
    lengths = np.maximum(np.einsum("...i,...i->...", stream, stream), np.finfo(np.float32).tiny)
    return float(np.mean(np.einsum("...i,...i->...", change, change) / lengths, dtype=np.float64))


def _inputs(state: State) -> LinearInputs:
    return LinearInputs(np.mean(np.square(_flat(state.inputs)), axis=0))


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _float32(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.shape, F32, tensor.dequantize().reshape(-1).view(np.uint8))
