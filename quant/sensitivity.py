"""What quantizing each tensor costs the model's predictions: the damages that a plan of mixed precision adds up.

The mean KL divergence of the predictions from the float model's is quadratic in a small change, and what different tensors do is nearly
independent. So each group of linear layers with a common input (q, k, v; o; gate, up; down; the embedding; the output layer) is quantized
coarsely while all else stays as it is, and the damage this does is shared out by what happens near by:

    damage of tensor i in format f = KL(float || the group coarse) * c_i(f) / sum_j c_j(coarse),    c = mean over tokens of |dx|^2 / |x|^2

where dx is the change of the residual stream x at the next sum, when this tensor alone is in that format. Its norm says nearly all of what
later blocks, which normalize the stream, make of it; the error of the layer's own outputs does not: attention averages most of an error in
v away, but not what tokens have in common. For the embedding c is the error of the rows that occur in the text, and for the output layer
that of its outputs on some rows; for an embedding that is both, that of its outputs on the rows that occur.

All probes go through the model side by side, block after block, so that the weights of a block are decoded once. Between the blocks the
streams rest in a work folder, from which interrupted work goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.blocks import F16, F32, IQ4_NL, IQ4_XS, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0
from edgelm.quant.format_trial import FormatTrials, Trial
from edgelm.quant.matrix import LinearInputs
from edgelm.quant.mixed_precision import Choice, TensorOptions
from edgelm.quant.model_file import Tensor
from edgelm.quant.piecewise_divergence import OutputLayer, piecewise_divergence
from edgelm.quant.state_writer import StateWriter
from edgelm.quant.stepped_model import State, Step, SteppedModel, Tokens
from edgelm.quant.tensor_formats import EMBEDDING, OUTPUT
from edgelm.quant.work_folder import WorkFolder
from edgelm.quant.work_manifest import StoredArray

Array = NDArray[np.float32]
Replaced = Mapping[str, Tensor]
Errors = Mapping[BlockFormat, float]
Say = Callable[[str, int, int], None]

CANDIDATES = (Q4_0, IQ4_NL, IQ4_XS, Q4_K, Q4_1, Q5_0, Q5_K, Q5_1, Q6_K, Q8_0)
_FLOAT, _PROBES, _ERRORS = "float", "probes", "errors"  # arrays of a checkpoint: the float model's stream, the probes', and their trials'


class PredictingModel(SteppedModel, OutputLayer, Protocol):
    """A model in steps, with its output layer; backends/block_steps.py is one."""


def measure_options(
    model: PredictingModel,
    tensors: Mapping[str, Tensor],
    windows: Tokens,
    trials: FormatTrials,
    work: WorkFolder,
    say: Say,
    passed: Callable[[], None] = lambda: None,
) -> tuple[TensorOptions, ...]:
    """Damages, in nats of mean KL divergence, of every linear layer, the embedding and the output layer in every format that can hold it.

    A tensor that no candidate can hold has one choice: F16, without damage.

    Args:
        tensors: the model's, by GGUF name.
        windows: tokens [n_windows, n], computed all together: memory holds some widest states of theirs.
        trials: the candidates.
        work: holds 4 n_embd bytes for each token and group; what an interrupted run left there is not done again.
        say: told what is being done, and how much of how much is done.
        passed: called after each block, once that is kept.

    Raises:
        InvalidRequestError: no candidates or no tokens, or weights that are not finite; the text names the tensor.
        MeasurementError: the predictions are no numbers.
        ModelFileError: the disk is full, or fails.
    """
    if not trials.formats or not windows.size:
        raise InvalidRequestError("there are no formats to choose from, or no tokens to measure with; give both")
    sweep = _Sweep(model, tensors, trials, work)
    costs = _costs(model, tensors)
    done = [0, *accumulate(costs)]
    kept = work.last_state()
    if kept is None:
        sweep.begin(windows)
    for layer in range(int(kept.step) if kept else 0, model.n_layers):
        say(f"probing block {layer + 1} of {model.n_layers}", done[layer], done[-1])
        sweep.block(layer)
        passed()
    return sweep.end(lambda piece, n: say("comparing predictions", done[-2] + costs[-1] * piece // n, done[-1]))


@dataclass(frozen=True)
class _Sweep:
    """All probes on their way through the model: the embedding, then the groups of each block as it is reached.

    A checkpoint has the stream of the float model [n_windows, n, n_embd], those of the probes [n_probes, ...], and the errors of their
    tensors float64 [n_tensors, n_formats], not a number where a format cannot hold the tensor.
    """

    model: PredictingModel
    tensors: Mapping[str, Tensor]
    trials: FormatTrials
    work: WorkFolder

    def begin(self, windows: Tokens) -> None:
        """The stream before the first block, and that of a coarse embedding."""
        inputs = self._output_inputs(windows) if OUTPUT not in self.tensors else None
        trial = self.trials.on_rows(self.tensors[EMBEDDING], np.unique(windows), inputs)
        if trial.coarse is not None:
            self.work.save_tensor(EMBEDDING, trial.coarse.format, trial.coarse.shape, trial.coarse.data)
        with self.work.new_state("0") as state:
            state.append(_FLOAT, self.model.embed(windows, {}))
            self._start(state, [trial], self.model.embed(windows, _coarse([trial])))

    def block(self, layer: int) -> None:
        """Take all streams through a block, where the probes of its own linear layers begin."""
        model, before = self.model, self._kept()
        groups = model.linear_groups(layer)
        floats = {name: _float32(self.tensors[name]) for names in groups for name in names}  # decoded once for all probes
        steps = model.steps(layer, floats)
        with self.work.new_state(str(layer + 1)) as state:
            state.append(_ERRORS, before[_ERRORS].read())
            for streams in before[_PROBES].chunks(1):
                state.append(_PROBES, _advanced(model.begin(layer, streams[0], floats), steps)[None])
            states = [model.begin(layer, before[_FLOAT].read(), floats)]
            for step in steps:
                states.append(step(states[-1]))
            state.append(_FLOAT, states[-1].stream)
            for n, names in enumerate(groups):
                trials = [self._tried(layer, floats, states, n, name) for name in names]
                self._start(state, trials, _advanced(states[n], model.steps(layer, {**floats, **_coarse(trials)})[n:]))

    def end(self, say: Callable[[int, int], None]) -> tuple[TensorOptions, ...]:
        """All damages, after the last block; an output layer that is not the embedding is probed here."""
        model, kept = self.model, self._kept()
        probes = [(EMBEDDING,), *chain.from_iterable(map(model.linear_groups, range(model.n_layers)))]
        reference, errors = self._last_inputs(kept[_FLOAT].read()), kept[_ERRORS].read()
        others: list[Callable[[], tuple[Array, Replaced]]] = [partial(self._probe, kept[_PROBES], n) for n in range(len(probes))]
        if OUTPUT in self.tensors:
            trial = self.trials.on_rows(self.tensors[OUTPUT], np.arange(model.n_vocab), _inputs(reference))
            probes, errors = [*probes, (OUTPUT,)], np.concatenate([errors, self._errors([trial])])
            others.append(lambda: (reference, _coarse([trial])))
        divergences = piecewise_divergence(model, reference, others, say).mean(axis=1).tolist()
        by_name = dict(zip(chain.from_iterable(probes), map(self._by_format, errors), strict=True))
        options = (self._options({name: by_name[name] for name in names}, kl) for names, kl in zip(probes, divergences, strict=True))
        return tuple(chain.from_iterable(options))

    def _kept(self) -> Mapping[str, StoredArray]:
        state = self.work.last_state()
        return state.arrays if state else {}

    def _output_inputs(self, windows: Tokens) -> LinearInputs:
        """By which an embedding that is the output layer, too, is quantized."""
        model, stream = self.model, self.model.embed(windows, {})
        for layer in range(model.n_layers):
            stream = _advanced(model.begin(layer, stream, {}), model.steps(layer, {}))
        return _inputs(model.end(stream).inputs)

    def _tried(self, layer: int, floats: Replaced, states: Sequence[State], n: int, name: str) -> Trial:
        """A linear layer that takes the inputs of states[n]; states: the float model's, before the block's steps and after the last."""
        end = next((i for i in range(n, len(states)) if states[i].stream is not states[n].stream), len(states) - 1)
        stream = states[end].stream

        def change(tensor: Tensor) -> float:
            steps = self.model.steps(layer, {**floats, name: tensor})[n:end]
            return _relative_squares(_advanced(states[n], steps) - stream, stream)

        return self.trials.whole(floats[name], _inputs(states[n].inputs), change)

    def _start(self, state: StateWriter, trials: Sequence[Trial], stream: Array) -> None:
        """Keep a new probe: tensors that are made coarse together, and the stream behind them."""
        state.append(_PROBES, stream[None])
        state.append(_ERRORS, self._errors(trials))

    def _errors(self, trials: Sequence[Trial]) -> NDArray[np.float64]:
        return np.array([[trial.errors.get(each, np.nan) for each in self.trials.formats] for trial in trials])

    def _by_format(self, errors: NDArray[np.float64]) -> Errors:
        """A row of what `_errors` gives."""
        return {each: error for each, error in zip(self.trials.formats, errors.tolist(), strict=True) if not math.isnan(error)}

    def _probe(self, streams: StoredArray, n: int) -> tuple[Array, Replaced]:
        """The output layer's inputs [n_tokens, n_embd] in a probe, and what it has in the place of the embedding."""
        kept = self.work.finished.get(EMBEDDING) if n == 0 else None
        coarse = {} if kept is None else {kept.name: Tensor(kept.name, kept.shape, kept.format, self.work.load_tensor(kept.name))}
        return self._last_inputs(streams.mapped()[n]), coarse

    def _last_inputs(self, stream: Array) -> Array:
        return _flat(self.model.end(stream).inputs)

    def _options(self, errors: Mapping[str, Errors], divergence: float) -> Iterator[TensorOptions]:
        """The damages of the tensors of a probe, of the divergence that all of them do together."""
        total = sum(max(each.values(), default=0.0) for each in errors.values())
        scale = divergence / total if total else 0.0
        for name, each in errors.items():
            shape = self.tensors[name].shape
            yield TensorOptions(name, shape, tuple(Choice(f.name, f.nbytes(shape), scale * e) for f, e in (each or {F16: 0.0}).items()))


def _coarse(trials: Sequence[Trial]) -> Replaced:
    return {trial.coarse.name: trial.coarse for trial in trials if trial.coarse is not None}


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


def _inputs(x: Array) -> LinearInputs:
    return LinearInputs(np.mean(np.square(_flat(x)), axis=0))


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _float32(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.shape, F32, tensor.dequantize().reshape(-1).view(np.uint8))
