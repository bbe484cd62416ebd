"""Mixed precision: the block format of each tensor under a budget, chosen from errors that others measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.blocks import FORMATS
from edgelm.quant.file_size import format_size
from edgelm.quant.knapsack import Items, select

BudgetKind = Literal["bits per weight", "file size", "error"]


@dataclass(frozen=True)
class Choice:
    """What storing a tensor in a format means.

    Attributes:
        format: name of the block format ("Q4_0").
        n_bytes: what the tensor's blocks take, without padding.
        error: predicted damage to the model's output, at least 0; damages of several tensors add up.
    """

    format: str
    n_bytes: int
    error: float


@dataclass(frozen=True)
class TensorOptions:
    """A tensor, by its GGUF name and its shape, slowest dimension first, and the formats it may get."""

    name: str
    shape: tuple[int, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Budget:
    """What a plan may spend.

    Attributes:
        kind: "bits per weight", on average over the tensors that are planned; "file size" in bytes, of the whole file; or
            "error", the greatest predicted error, for which the plan then takes the fewest bytes.
        amount: in units of the kind.
    """

    kind: BudgetKind
    amount: float

    def __str__(self) -> str:
        if self.kind == "bits per weight":
            return f"{self.amount:g} bits per weight"
        return f"a file of {format_size(int(self.amount))}" if self.kind == "file size" else f"a predicted error of {self.amount:g}"


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor and its format; fields as in TensorOptions and Choice."""

    name: str
    shape: tuple[int, ...]
    format: str
    n_bytes: int
    error: float

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_bytes / self.n_weights


@dataclass(frozen=True)
class Plan:
    """A format for each tensor.

    Attributes:
        tensors: in the order of the options.
        budget: what was asked for.
        fixed_bytes: of the file beside the planned tensors: header, metadata, and tensors that are not quantized.
        alignment: of tensors in the file, in bytes.
    """

    tensors: tuple[PlannedTensor, ...]
    budget: Budget
    fixed_bytes: int = 0
    alignment: int = 32

    @property
    def formats(self) -> Mapping[str, BlockFormat]:
        """By the names of the tensors."""
        return {tensor.name: FORMATS[tensor.format] for tensor in self.tensors}

    @property
    def n_bytes(self) -> int:
        """Of the planned tensors, without padding."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def file_bytes(self) -> int:
        """Of the whole file."""
        return self.fixed_bytes + sum(_padded(tensor.n_bytes, self.alignment) for tensor in self.tensors)

    @property
    def n_weights(self) -> int:
        return sum(tensor.n_weights for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """On average over the planned tensors."""
        return 8 * self.n_bytes / self.n_weights

    @property
    def error(self) -> float:
        """Predicted error of the model."""
        return math.fsum(tensor.error for tensor in self.tensors)


def choose_formats(options: Sequence[TensorOptions], budget: Budget, fixed_bytes: int = 0, alignment: int = 32) -> Plan:
    """The least total error that the budget's bytes allow; or, for a budget of the kind "error", the fewest bytes.

    It is a multiple-choice knapsack problem, solved to within knapsack.TOLERANCE of the best that any choice reaches.

    Args:
        fixed_bytes: of the file beside these tensors; counts against a file size only.
        alignment: of tensors in the file; their padding counts against a file size only.

    Raises:
        InvalidRequestError: no choice is within the budget (the text says what is), or the options make no sense.
    """
    check_options(options)
    n_weights = sum(math.prod(tensor.shape) for tensor in options)
    if not 0 < budget.amount < math.inf and not (budget.kind == "error" and budget.amount == 0):
        raise InvalidRequestError(f"the budget is {budget.amount:g} ({budget.kind}), but must be a finite number above zero")
    padding = alignment if budget.kind == "file size" else 1
    sizes = [np.array([_padded(choice.n_bytes, padding) for choice in tensor.choices], np.float64) for tensor in options]
    errors = [np.array([choice.error for choice in tensor.choices], np.float64) for tensor in options]
    if budget.kind == "error":
        chosen = select([Items(weights=e, costs=s) for e, s in zip(errors, sizes, strict=True)], budget.amount)
    else:
        capacity = budget.amount - fixed_bytes if budget.kind == "file size" else budget.amount * n_weights / 8
        chosen = select([Items(weights=s, costs=e) for e, s in zip(errors, sizes, strict=True)], capacity)
    if chosen is None:
        raise _infeasible(options, budget, fixed_bytes, alignment)
    picked = [tensor.choices[n] for tensor, n in zip(options, chosen, strict=True)]
    planned = tuple(PlannedTensor(t.name, t.shape, c.format, c.n_bytes, c.error) for t, c in zip(options, picked, strict=True))
    return Plan(planned, budget, fixed_bytes, alignment)


def check_options(options: Sequence[TensorOptions]) -> None:
    """
    Raises:
        InvalidRequestError: there are none, a name comes twice, a tensor has no choice or no weights, or a choice has an unknown
            format, bytes that its format does not take, or an error that is negative or no finite number.
    """
    if not options:
        raise InvalidRequestError("there are no tensors to plan; the model has nothing to quantize")
    name, count = Counter(tensor.name for tensor in options).most_common(1)[0]
    if count > 1:
        raise InvalidRequestError(f"the tensor {name} is to be planned {count} times; give each tensor once")
    for tensor in options:
        if not tensor.choices or not math.prod(tensor.shape):
            raise InvalidRequestError(f"the tensor {tensor.name} with shape {tensor.shape} has no weights, or no format to choose from")
        for choice in tensor.choices:
            check_bytes(tensor.name, tensor.shape, choice.format, choice.n_bytes)
            if not 0 <= choice.error < math.inf:
                raise InvalidRequestError(
                    f"the error of {tensor.name} as {choice.format} is {choice.error:g}, but must be finite and not negative; "
                    "measure it again, or leave this choice out"
                )


def check_bytes(name: str, shape: tuple[int, ...], format_name: str, n_bytes: int) -> None:
    """
    Raises:
        InvalidRequestError: there is no such format, or a tensor of this shape has other bytes in it.
        ModelFileError: rows of the tensor are not whole blocks.
    """
    if format_name not in FORMATS:
        raise InvalidRequestError(f"{name} is to be {format_name!r}, which is no format; choose one of {', '.join(FORMATS)}")
    wanted = FORMATS[format_name].nbytes(shape)
    if n_bytes != wanted:
        raise InvalidRequestError(f"{name} with shape {shape} takes {wanted} bytes as {format_name}, but was given {n_bytes}")


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment


def _infeasible(options: Sequence[TensorOptions], budget: Budget, fixed_bytes: int, alignment: int) -> InvalidRequestError:
    if budget.kind == "error":
        least_error = math.fsum(min(choice.error for choice in tensor.choices) for tensor in options)
        return InvalidRequestError(
            f"no choice of formats has a predicted error of at most {budget.amount:g}; the least possible is {least_error:.4g}: "
            "allow that, or give finer formats to choose from"
        )
    smallest = [min(choice.n_bytes for choice in tensor.choices) for tensor in options]
    if budget.kind == "file size":
        least_bytes = fixed_bytes + sum(_padded(n, alignment) for n in smallest)
        least = (
            f"{least_bytes:,} bytes ({math.ceil(least_bytes / 1e4) / 100:,.2f} MB), of which {fixed_bytes:,} are not tensors to quantize"
        )
    else:
        bits = 8 * sum(smallest) / sum(math.prod(tensor.shape) for tensor in options)
        least = f"{math.ceil(bits * 1e4) / 1e4:g} bits per weight"
    return InvalidRequestError(
        f"no choice of formats fits {budget}; the smallest possible is {least}: allow that, or give smaller formats to choose from"
    )
