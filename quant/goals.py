"""What each tensor of a model becomes, and whether the source and the calibration are fit for it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.blocks import F32
from edgelm.quant.input_statistics import Calibration
from edgelm.quant.matrix import NOT_FINITE, naming
from edgelm.quant.model_file import ModelFile, Tensor
from edgelm.quant.tensor_formats import EMBEDDING, OUTPUT, FormatRules, Resolved, bits_per_weight, is_vector

_WEIGHTS_AT_ONCE = 1 << 23  # 32 MiB as float32
_COARSE = 6.6  # bits per weight; what is stored in fewer has lost too much to be quantized again unasked


@dataclass(frozen=True)
class Goal:
    """What one tensor becomes.

    Attributes:
        shape: slowest dimension first.
        source: its format in the source.
        resolved: its format to be, and why.
    """

    shape: tuple[int, ...]
    source: BlockFormat
    resolved: Resolved

    @property
    def format(self) -> BlockFormat:
        return self.resolved.format

    @property
    def is_kept(self) -> bool:
        """Whether its blocks are copied, for the source has it in that format already."""
        return self.format == self.source

    @property
    def is_quantized(self) -> bool:
        """Whether it is a matrix that changes; vectors are merely stored as F32."""
        return not self.is_kept and len(self.shape) > 1

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)


def set_goals(
    file: ModelFile, rules: FormatRules | None, formats: Mapping[str, BlockFormat], allow_requantize: bool, widened: Collection[str] = ()
) -> dict[str, Goal]:
    """A goal for every tensor of a model.

    Args:
        rules: None keeps every matrix as it is.
        formats: of a plan; they win over the rules.
        allow_requantize: quantize again what is stored in few bits already.
        widened: names of tensors that are read in a larger format than the source stores them in.

    Raises:
        InvalidRequestError: a pattern fits no tensor, or the source is quantized and may not be again.
    """
    goals = {}
    for name, tensor in file.tensors.items():
        if is_vector(name, tensor.shape):
            resolved = Resolved(F32, "vectors stay F32")
        elif name in formats:
            resolved = Resolved(formats[name], "the plan")
        elif rules is None:
            resolved = Resolved(tensor.format, "kept as it is")
        else:
            resolved = rules.resolve(name, tensor.shape)
        goals[name] = goal = Goal(tensor.shape, tensor.format, resolved)
        is_coarse = name in widened or bits_per_weight(goal.source) < _COARSE
        if goal.is_quantized and is_coarse and not allow_requantize:
            stored = "in few bits" if name in widened else goal.source.name
            raise InvalidRequestError(
                f"{name} is {stored} in the source already; quantizing it again to {goal.format.name} loses twice. Give a source in 16 or "
                "32 bits, or allow it with --allow-requantize"
            )
    if rules is not None:
        rules.check_patterns(name for name, goal in goals.items() if not is_vector(name, goal.shape))
    return goals


def check_finite(file: ModelFile, names: Iterable[str]) -> None:
    """
    Raises:
        InvalidRequestError: a value of these tensors is infinite or not a number.
    """
    for name in names:
        with naming(name):
            if not all(np.isfinite(rows).all() for rows in row_chunks(file.tensors[name])):
                raise InvalidRequestError(NOT_FINITE)
        file.drop_pages()


def check_calibration(goals: Mapping[str, Goal], calibration: Calibration) -> list[str]:
    """Names of the matrices to be quantized that the statistics do not speak of, beside the embedding and the output layer.

    Raises:
        InvalidRequestError: they are of another model.
    """
    names = [name for name, goal in goals.items() if goal.is_quantized]
    for name in names:
        statistics, width = calibration.get(name), goals[name].shape[-1]
        if statistics is not None and statistics.n_in != width:
            raise InvalidRequestError(
                f"the importance matrix is of another model: it has {statistics.n_in} inputs for {name}, which has {width}; make one of "
                "this model with `edgelm calibrate`"
            )
    missing = [name for name in names if name not in (EMBEDDING, OUTPUT) and _says_nothing(calibration, name)]
    if missing and all(_says_nothing(calibration, name) for name in names):
        raise InvalidRequestError(
            f"the importance matrix is of another model: it has nothing on {missing[0]} and all others; make one of this model with "
            "`edgelm calibrate`"
        )
    return missing


def row_chunks(tensor: Tensor) -> Iterator[NDArray[np.float32]]:
    """All values, some rows at a time; those of a vector as one row."""
    n_columns = tensor.shape[-1]
    row = tensor.format.nbytes((n_columns,))
    step = row * max(1, _WEIGHTS_AT_ONCE // n_columns)
    for start in range(0, tensor.data.size, step):
        yield tensor.format.dequantize(tensor.data[start : start + step]).reshape(-1, n_columns)


def _says_nothing(calibration: Calibration, name: str) -> bool:
    return name not in calibration or not calibration[name].n_tokens
