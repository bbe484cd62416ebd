"""A whole model from its source to a quantized GGUF file: which tensors change, in which order, and the file that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.quant.blocks import F32
from edgelm.quant.channel_scaling import scaled_inputs
from edgelm.quant.gguf_metadata import FILE_TYPES, encode_metadata
from edgelm.quant.gguf_writer import TensorSource, file_bytes, write_gguf
from edgelm.quant.goals import Goal, row_chunks
from edgelm.quant.input_statistics import Calibration
from edgelm.quant.matrix import LinearInputs, Method, QuantizedMatrix, naming, quantize_by_what_is_known
from edgelm.quant.memory_limit import MemoryLimit
from edgelm.quant.model_file import ModelFile, Tensor
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scratch import Scratch
from edgelm.quant.sequential import Paths, output_inputs, quantize_block, resume_paths, start_paths
from edgelm.quant.stepped_model import SteppedModel, Tokens
from edgelm.quant.tensor_formats import EMBEDDING, OUTPUT
from edgelm.quant.work_folder import WorkFolder

_BYTES_AT_ONCE = 1 << 24

Say = Callable[[str, int, int], None]
"""Told what is being done, and how many weights of how many are done."""


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
        memory: beyond which the work stops with an error; it can be resumed.
        columns: by what the columns of some matrices of the file were multiplied, float32 [n_in] by name, since statistics of their
            inputs were collected.
    """

    file: ModelFile
    goals: Mapping[str, Goal]
    method: Method
    work: WorkFolder
    threads: RowThreads
    say: Say
    memory: MemoryLimit
    columns: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def one_by_one(self, calibration: Calibration) -> None:
        """Every matrix by itself, from statistics of the float model's inputs, as far as there are any; GPTQ falls to search without."""
        names = self._quantized()
        groups: dict[int, list[str]] = {}  # with the same inputs, for which a Hessian is factorized once
        for name in self._to_do(names):
            groups.setdefault(id(calibration.get(name, name)), []).append(name)
        for group in groups.values():
            inputs = self._known_inputs(group[0], calibration)
            for name in group:
                self._quantize_rows(name, inputs, names)

    def block_by_block(self, model: SteppedModel, windows: Tokens, n_batch: int, scratch: Scratch, calibration: Calibration) -> None:
        """Blocks in order, each for the inputs that the blocks before it leave; the embedding first and the output layer last.

        Progress counts what has inputs; the embedding takes no time beside it.

        Args:
            windows: calibration tokens [n_windows, n].
            n_batch: windows at a time.
            calibration: for the embedding, which has no inputs here.
        """
        in_blocks = {name for layer in range(model.n_layers) for group in model.linear_groups(layer) for name in group}
        names = [name for name in self._quantized() if name in in_blocks or name == OUTPUT]
        for name in self._to_do(self._quantized()):
            if name not in names:
                self._quantize_rows(name, self._known_inputs(name, calibration), names)
        state = self.work.last_state()
        if state is None:
            paths, first = start_paths(model, windows, n_batch, scratch, self._finished((EMBEDDING,))), 0
        else:
            paths, first = resume_paths(model, state.arrays, n_batch, scratch), int(state.step)
        for layer in range(first, model.n_layers):
            self._quantize_block(paths, layer, names)
        for name in self._to_do((OUTPUT,) if OUTPUT in names else ()):
            self._quantize_rows(name, output_inputs(paths, self.method, self.threads), names)

    def _quantize_block(self, paths: Paths, layer: int, counted: Collection[str]) -> None:
        what = f"block {layer + 1} of {paths.model.n_layers}"
        names = [name for group in paths.model.linear_groups(layer) for name in group]
        tensors = {name: self.file.tensors[name] for name in names}

        def finished(name: str, matrix: QuantizedMatrix) -> None:
            self._save(name, [matrix])
            self._tell(what, counted)

        self._tell(what, counted)
        formats = {name: self.goals[name].format for name in names if self.goals[name].is_quantized}
        quantize_block(paths, layer, tensors, formats, self.method, self.threads, finished, self._finished(names))
        paths.save(self.work, layer + 1)
        self.file.drop_pages()

    def _quantize_rows(self, name: str, inputs: LinearInputs | None, counted: Collection[str]) -> None:
        """A matrix some rows at a time, so that a large one takes no more memory than a small one."""
        parts: list[QuantizedMatrix] = []
        n_done = 0
        for rows in row_chunks(self.file.tensors[name]):
            self._tell(name, counted, n_done if name in counted else 0)
            with naming(name):
                parts.append(quantize_by_what_is_known(rows, self.goals[name].format, self.method, inputs, self.threads))
            n_done += rows.size
            self.memory.check()
            self.file.drop_pages()
        self._save(name, parts)

    def _known_inputs(self, name: str, calibration: Calibration) -> LinearInputs | None:
        statistics = calibration.get(name)
        if statistics is None or not statistics.n_tokens or self.method.name == "round":
            return None
        n = np.float32(statistics.n_tokens)
        if statistics.outer is None or self.method.name != "gptq":
            inputs = LinearInputs(statistics.squares / n)
        else:
            with naming(name):
                inputs = LinearInputs.of(statistics.outer / n, self.method.damping, self.threads)
        return scaled_inputs(inputs, self.columns[name]) if name in self.columns else inputs

    def _save(self, name: str, parts: Sequence[QuantizedMatrix]) -> None:
        energy = sum(part.energy for part in parts)
        facts: dict[str, float | str] = {"error": sum(part.error * part.energy for part in parts) / energy if energy else 0.0}
        if parts[0].note:
            facts["note"] = parts[0].note
        self.work.save_tensor(name, self.goals[name].format, self.goals[name].shape, (part.data for part in parts), facts)
        self.memory.check()

    def _finished(self, names: Iterable[str]) -> dict[str, Tensor]:
        done = self.work.finished
        return {name: Tensor(name, done[name].shape, done[name].format, self.work.load_tensor(name)) for name in names if name in done}

    def _quantized(self) -> list[str]:
        return [name for name, goal in self.goals.items() if goal.is_quantized]

    def _to_do(self, names: Iterable[str]) -> list[str]:
        done = self.work.finished
        return [name for name in names if name not in done]

    def _tell(self, what: str, counted: Collection[str], n_more: int = 0) -> None:
        """How many weights of those that are counted are done, and so many more."""
        done = self.work.finished
        n_done = sum(self.goals[name].n_weights for name in counted if name in done)
        self.say(what, n_done + n_more, sum(self.goals[name].n_weights for name in counted))


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
    metadata, n_entries = _metadata(file, goals, facts)
    for partial in target.parent.glob(f"{escape(target.name)}.*.partial"):  # of a process that was killed here; the folder's lock is ours
        partial.unlink(missing_ok=True)
    write_gguf(target, metadata, n_entries, [_source(file, name, goal, work) for name, goal in goals.items()])


def bytes_beside_matrices(file: ModelFile, goals: Mapping[str, Goal], facts: Mapping[str, str | int | float]) -> int:
    """What write_quantized's file takes beside its matrices, whatever their formats become: metadata, table of tensors, vectors."""
    metadata, n_entries = _metadata(file, goals, facts)
    shapes = {name: goal.shape if len(goal.shape) == 1 else (0, goal.shape[-1]) for name, goal in goals.items()}
    return file_bytes(metadata, n_entries, [TensorSource(name, shape, F32, tuple) for name, shape in shapes.items()])


def _metadata(file: ModelFile, goals: Mapping[str, Goal], facts: Mapping[str, str | int | float]) -> tuple[bytes, int]:
    """Encoded entries: the source's, and how the file was made."""
    weights: dict[str, int] = {}
    for goal in goals.values():
        weights[goal.format.name] = weights.get(goal.format.name, 0) + goal.n_weights
    file_type = max(weights, key=lambda name: weights[name])
    outdated = ("edgelm.quantize.", "quantize.imatrix.") if any(goal.is_quantized for goal in goals.values()) else ()
    there = {key: value for key, value in file.metadata.items() if not key.startswith(outdated)}
    return encode_metadata({**there, **facts}, file_type if file_type in FILE_TYPES else None)


def _source(file: ModelFile, name: str, goal: Goal, work: WorkFolder) -> TensorSource:
    def chunks() -> Iterator[NDArray[np.uint8]]:
        if goal.is_quantized:
            data = work.load_tensor(name)
        elif goal.is_kept:
            data = file.tensors[name].data
        else:
            data = goal.format.quantize(file.tensors[name].dequantize())
        for start in range(0, data.size, _BYTES_AT_ONCE):
            yield data[start : start + _BYTES_AT_ONCE]
        file.drop_pages()

    return TensorSource(name, goal.shape, goal.format, chunks)
