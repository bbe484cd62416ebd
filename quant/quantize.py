"""A whole model from its source to a quantized GGUF file: which tensors change, in which order, and the file that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InsufficientMemoryError, InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.blocks import F32
from edgelm.quant.gguf_metadata import FILE_TYPES, encode_metadata
from edgelm.quant.gguf_writer import TensorSource, write_gguf
from edgelm.quant.input_statistics import Calibration
from edgelm.quant.matrix import LinearInputs, Method, QuantizedMatrix, quantize_matrix
from edgelm.quant.model_file import ModelFile, Tensor
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scratch import Scratch
from edgelm.quant.sequential import Paths, output_inputs, quantize_block, resume_paths, start_paths
from edgelm.quant.stepped_model import SteppedModel, Tokens
from edgelm.quant.tensor_formats import EMBEDDING, OUTPUT, FormatRules, Resolved, bits_per_weight, is_vector
from edgelm.quant.work_folder import WorkFolder

_WEIGHTS_AT_ONCE = 1 << 23  # 32 MiB as float32
_BYTES_AT_ONCE = 1 << 24
_COARSE = 6.6  # bits per weight; what is stored in fewer has lost too much to be quantized again unasked

Say = Callable[[str, int, int], None]
"""Told what is being done, and how many weights of how many are done."""


@dataclass(frozen=True)
class Goal:
    """What one tensor becomes.

    Attributes:
        resolved: its format, and why.
        is_kept: its blocks are copied, for the source has it in that format already.
    """

    resolved: Resolved
    is_kept: bool

    @property
    def format(self) -> BlockFormat:
        return self.resolved.format


def set_goals(file: ModelFile, rules: FormatRules | None, formats: Mapping[str, BlockFormat], allow_requantize: bool) -> dict[str, Goal]:
    """A goal for every tensor of a model.

    Args:
        rules: None keeps every matrix as it is.
        formats: of a plan; they win over the rules.
        allow_requantize: quantize again what is stored in few bits already.

    Raises:
        InvalidRequestError: a pattern fits no tensor, or the source is quantized and may not be again.
    """
    if rules is not None:
        rules.check_patterns(name for name, tensor in file.tensors.items() if not is_vector(name, tensor.shape))
    goals = {}
    for name, tensor in file.tensors.items():
        if is_vector(name, tensor.shape):
            goals[name] = Goal(Resolved(F32, "vectors stay F32"), tensor.format == F32)
            continue
        if name in formats:
            resolved = Resolved(formats[name], "the plan")
        elif rules is None:
            resolved = Resolved(tensor.format, "kept as it is")
        else:
            resolved = rules.resolve(name, tensor.shape)
        is_kept = resolved.format == tensor.format
        if not is_kept and bits_per_weight(tensor.format) < _COARSE and not allow_requantize:
            raise InvalidRequestError(
                f"{name} is {tensor.format.name} in the source already; quantizing it again to {resolved.format.name} loses twice. Give a "
                "source in 16 or 32 bits, or allow it with --allow-requantize"
            )
        goals[name] = Goal(resolved, is_kept)
    return goals


@dataclass(frozen=True, eq=False)
class Quantizer:
    """The work on one model.

    Attributes:
        file: the source.
        goals: of all its tensors.
        method: how matrices are quantized.
        work: keeps what is finished.
        threads: that compute.
        say: told of progress.
        max_bytes: resident memory beyond which the work stops with an error; it can be resumed.
    """

    file: ModelFile
    goals: Mapping[str, Goal]
    method: Method
    work: WorkFolder
    threads: RowThreads
    say: Say
    max_bytes: int

    def one_by_one(self, calibration: Calibration) -> None:
        """Every matrix by itself, from statistics of the float model's inputs, as far as there are any; GPTQ falls to search without."""
        for name in self._to_do():
            self.say(name, self._n_done(), self._n_weights())
            self._quantize_rows(name, self._known_inputs(name, calibration))

    def block_by_block(self, model: SteppedModel, windows: Tokens, n_batch: int, scratch: Scratch, calibration: Calibration) -> None:
        """Blocks in order, each for the inputs that the blocks before it leave; the embedding first and the output layer last.

        Args:
            windows: calibration tokens [n_windows, n].
            n_batch: windows at a time.
            calibration: for the embedding, which has no inputs here.
        """
        for name in self._to_do():
            if not name.startswith("blk.") and name != OUTPUT:
                self.say(name, self._n_done(), self._n_weights())
                self._quantize_rows(name, self._known_inputs(name, calibration))
        state = self.work.last_state()
        if state is None:
            paths, first = start_paths(model, windows, n_batch, scratch, self._replaced((EMBEDDING,))), 0
        else:
            paths, first = resume_paths(model, state.arrays, n_batch, scratch), int(state.step)
        for layer in range(first, model.n_layers):
            self._quantize_block(paths, layer)
        if OUTPUT in self._to_do():
            self.say(OUTPUT, self._n_done(), self._n_weights())
            self._quantize_rows(OUTPUT, output_inputs(paths, self.method, self.threads))

    def _quantize_block(self, paths: Paths, layer: int) -> None:
        names = [name for group in paths.model.linear_groups(layer) for name in group]
        tensors = {name: self.file.tensors[name] for name in names}
        done = self._replaced(names)

        def finished(name: str, matrix: QuantizedMatrix) -> None:
            self._save(name, matrix.format, tensors[name].shape, matrix.data, matrix.error)

        self.say(f"block {layer + 1} of {paths.model.n_layers}", self._n_done(), self._n_weights())
        formats = {name: self.goals[name].format for name in names if not self.goals[name].is_kept}
        try:
            quantize_block(paths, layer, tensors, formats, self.method, self.threads, finished, done)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"block {layer}: {error}") from error
        paths.save(self.work, layer + 1)
        self.file.drop_pages()

    def _quantize_rows(self, name: str, inputs: LinearInputs | None) -> None:
        """A matrix some rows at a time, so that a large one takes no more memory than a small one."""
        tensor, goal, how = self.file.tensors[name], self.goals[name].format, self.method
        if how.name == "gptq" and (inputs is None or inputs.hessian is None):
            how = replace(how, name="search")
        parts: list[NDArray[np.uint8]] = []
        lost = energy = 0.0
        try:
            for rows in _row_chunks(tensor):
                part = quantize_matrix(rows, goal, how, inputs, self.threads)
                parts.append(part.data)
                lost, energy = lost + part.error * part.energy, energy + part.energy
                self._check_memory()
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{name}: {error}") from error
        self._save(name, goal, tensor.shape, np.concatenate(parts), lost / energy if energy else 0.0)
        self.file.drop_pages()

    def _known_inputs(self, name: str, calibration: Calibration) -> LinearInputs | None:
        statistics = calibration.get(name)
        if statistics is None or not statistics.n_tokens or self.method.name == "round":
            return None
        n = np.float32(statistics.n_tokens)
        if statistics.outer is None or self.method.name != "gptq":
            return LinearInputs(statistics.squares / n)
        return LinearInputs.of(statistics.outer / n, self.method.damping, self.threads)

    def _save(self, name: str, block_format: BlockFormat, shape: tuple[int, ...], data: NDArray[np.uint8], error: float) -> None:
        self.work.save_tensor(name, block_format, shape, data, {"error": error})
        self._check_memory()

    def _replaced(self, names: Any) -> dict[str, Tensor]:
        done = self.work.finished
        return {name: Tensor(name, done[name].shape, done[name].format, self.work.load_tensor(name)) for name in names if name in done}

    def _to_do(self) -> list[str]:
        done = self.work.finished
        return [name for name, goal in self.goals.items() if not goal.is_kept and len(self._shape(name)) > 1 and name not in done]

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.file.tensors[name].shape

    def _n_weights(self) -> int:
        return sum(int(np.prod(self._shape(name))) for name, goal in self.goals.items() if not goal.is_kept)

    def _n_done(self) -> int:
        return sum(int(np.prod(tensor.shape)) for tensor in self.work.finished.values())

    def _check_memory(self) -> None:
        import psutil

        used = psutil.Process().memory_info().rss
        if used > self.max_bytes:
            raise InsufficientMemoryError(
                f"{used / 1e6:,.0f} MB are in use, more than the {self.max_bytes / 1e6:,.0f} MB allowed; run the same command again with a "
                "larger --max-memory, and it goes on from here, or choose a method that takes less (search)"
            )


def write_quantized(
    target: Path, file: ModelFile, goals: Mapping[str, Goal], work: WorkFolder, facts: Mapping[str, str | int | float]
) -> None:
    """Write the GGUF file from finished and kept tensors.

    Args:
        facts: further metadata, as of the method.

    Raises:
        ModelFileError: the file cannot be written.
        EdgeLMError: metadata that GGUF does not hold; see gguf_metadata.encode_metadata.
    """
    weights: dict[str, int] = {}
    for name, goal in goals.items():
        weights[goal.format.name] = weights.get(goal.format.name, 0) + int(np.prod(file.tensors[name].shape))
    file_type = max(weights, key=lambda name: weights[name])
    metadata, n_entries = encode_metadata({**file.metadata, **facts}, file_type if file_type in FILE_TYPES else None)
    write_gguf(target, metadata, n_entries, [_source(file.tensors[name], goal, work) for name, goal in goals.items()])


def _source(tensor: Tensor, goal: Goal, work: WorkFolder) -> TensorSource:
    def chunks() -> Iterator[NDArray[np.uint8]]:
        if goal.is_kept:
            data = tensor.data
        elif tensor.name in work.finished:
            data = work.load_tensor(tensor.name)
        else:
            data = goal.format.quantize(tensor.dequantize())
        for start in range(0, data.size, _BYTES_AT_ONCE):
            yield data[start : start + _BYTES_AT_ONCE]

    return TensorSource(tensor.name, tensor.shape, goal.format, chunks)


def _row_chunks(tensor: Tensor) -> Iterator[NDArray[np.float32]]:
    n_rows, n_columns = tensor.shape
    row = tensor.format.nbytes((n_columns,))
    step = max(1, _WEIGHTS_AT_ONCE // n_columns)
    for start in range(0, n_rows, step):
        yield tensor.format.dequantize(tensor.data[start * row : (start + step) * row]).reshape(-1, n_columns)
